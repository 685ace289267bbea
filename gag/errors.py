"""Every error that a user can cause or mend. The command line prints one line and exits with 2.

GagError
├── SettingsError     gag.yaml, --set, a name or a path
├── DataError         a file of rows, or the rows in it
├── ArtifactError     a trained folder: missing, half-written, edited, of another version
├── MismatchError     two things that do not belong together: domain and base, store and expert, ...
├── RoutingError      no domain of that name
├── BusyError         the server has no room for a question now
└── MissingExtraError an optional package is not installed

A message says what happened, what was expected, and what to do.
"""

import errno


class GagError(Exception):
    """An error with a cure in its message."""


class SettingsError(GagError):
    """A setting, a name or a path is wrong."""


class DataError(GagError):
    """A file of rows, or a row in it, is wrong."""


class ArtifactError(GagError):
    """A trained folder is missing, half-written, edited, or of another version."""


class MismatchError(GagError):
    """Two things do not belong together."""


class RoutingError(GagError):
    """The asked domain is not among those present."""


class BusyError(GagError):
    """There is no room for a question now; `seconds` says when to ask again."""

    def __init__(self, message: str, seconds: int):
        self.seconds = seconds
        super().__init__(message)


class MissingExtraError(GagError):
    """An optional package is needed and not installed."""


def is_full_memory(error: BaseException) -> bool:
    """Say whether an error is that of memory that is used up: an accelerator's, or the machine's."""
    named = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def is_full_disk(error: BaseException) -> bool:
    """Say whether an error is the system's for a full disk or an exhausted quota.

    Safetensors only passes its words on.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return type(error).__name__ == "SafetensorError" and "No space left" in str(error)
