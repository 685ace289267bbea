"""Domains on a model hub: pushed as they stand, pulled at one commit, and checked against their hashes."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download

from gag.engine.domains import add_domain
from gag.errors import ArtifactError, SettingsError
from gag.models.loading import one_line
from gag.project.domain import DOMAIN, load_domain
from gag.project.project import Project

LIBRARIES = (
    "httpx",
    "httpx2",
    "huggingface_hub",
)  # whose errors say that the hub cannot be reached, or refuses


def push_domain(project: Project, name: str, repository: str, private: bool = True) -> str:
    """Put a domain's folder into a repository of a model hub, once it is whole.

    Args:
        project: whose domain it is.
        name: the domain's.
        repository: owner/name; it is made if it is not there.
        private: whether a new one is closed to others.

    Returns: The commit.

    Raises:
        ArtifactError: a file is missing, or was edited.
        SettingsError: the hub cannot be reached, or refuses.
    """
    domain = load_domain(project.domain(project.require(name)), anew=True)
    with _explained(repository):
        hub = HfApi(library_name="gag")
        hub.create_repo(repository, private=private, exist_ok=True)
        pushed = hub.upload_folder(
            repo_id=repository,
            folder_path=domain.folder,
            allow_patterns=[DOMAIN, *domain.files],
            delete_patterns=["*"],  # what an earlier one held beside these
            commit_message=f"{domain.facts.name} {domain.revision}",
        )
    return str(pushed.oid)


def pull_domain(project: Project, repository: str, revision: str | None = None) -> tuple[str, str]:
    """Plug in a domain from a model hub, if its files have the hashes that it states, and it fits.

    Args:
        project: where it goes.
        repository: owner/name.
        revision: a commit, a tag or a branch (default: the newest commit).

    Returns: The domain's name, and the commit that it is of: give that one again to have the same.

    Raises:
        SettingsError: the hub cannot be reached, or there is no such repository or revision; or a domain of
            that name is here.
        ArtifactError: it is no domain, or a file is not what it should be.
        MismatchError: it was built for another base, expert or encoder.
    """
    with tempfile.TemporaryDirectory(prefix="gag-") as temporary:
        folder = Path(temporary) / "domain"
        with _explained(repository):
            commit = HfApi(library_name="gag").repo_info(repository, revision=revision).sha
            if not commit:
                raise ArtifactError(f"{repository} holds no commit; push a domain there first")

            def fetch(file: str) -> None:
                hf_hub_download(repository, file, revision=commit, local_dir=folder, library_name="gag")

            fetch(DOMAIN)
            for file in load_domain(folder, only=()).files:  # its names lie inside its folder
                fetch(file)
        return add_domain(project, folder), commit


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Say in one line what the hub says."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in LIBRARIES:
            raise
        raise SettingsError(
            f"{repository} on the hub: {one_line(error)}; name it as owner/name, and set HF_TOKEN (or "
            "`hf auth login`) for one that is closed"
        ) from error
