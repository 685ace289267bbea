"""Who may ask what: a file of keys, of which only hashes are kept."""

import hashlib
import secrets
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gag.errors import SettingsError
from gag.project.settings import check_name
from gag.serving.errors import RequestError


class Key(BaseModel):
    """One key.

    Attributes:
        name: whose it is.
        sha256: of the key.
        domains: that it may ask, beside general; None: all.
        admin: whether it may add and remove domains.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=100)
    sha256: str = Field(pattern="[0-9a-f]{64}")
    domains: frozenset[str] | None = None
    admin: bool = False

    def allow(self, domain: str) -> None:
        """Refuse a domain that this key may not ask."""
        if self.domains is not None and domain not in self.domains:
            raise RequestError(403, f"this key may not ask {domain}", "model", "domain_not_allowed")


ANYBODY = Key(name="anybody", sha256="0" * 64)


class Keys:
    """The keys of a server; without a file anybody may ask, and nobody may change the domains."""

    def __init__(self, path: Path | None):
        self._keys = None if path is None else read_keys(path)

    @property
    def are_asked_for(self) -> bool:
        """Whether a key is needed."""
        return self._keys is not None

    def find(self, authorization: str | None) -> Key:
        """Return the key of an Authorization header; RequestError: it is missing or unknown."""
        if self._keys is None:
            return ANYBODY
        scheme, _, given = (authorization or "").partition(" ")
        sha = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).hexdigest()
        found = [key for key in self._keys if secrets.compare_digest(key.sha256, sha)]
        if scheme.lower() != "bearer" or not found:
            raise RequestError(
                401, "a key of this server is needed: Authorization: Bearer KEY", code="invalid_api_key"
            )
        return found[0]


def read_keys(path: Path) -> list[Key]:
    """Read a file of keys.

    Raises:
        SettingsError: it is not there, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return [Key.model_validate(one) for one in content or []]
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise SettingsError(
            f"serve.keys: {path.name} holds no keys ({' '.join(str(problem).split())[:200]}); make it with "
            "`gag serve --new-key NAME`"
        ) from error


def new_key(path: Path, name: str, domains: list[str], admin: bool) -> str:
    """Make a key, and add its hash to a file -> the key, which is kept nowhere."""
    keys = read_keys(path) if path.is_file() else []
    if any(key.name == name for key in keys):
        raise SettingsError(f"{path.name} has a key of {name}; take another name, or delete its lines there")
    made = f"gag-{secrets.token_urlsafe(32)}"
    allowed = frozenset(check_name(domain) for domain in domains) or None
    sha = hashlib.sha256(made.encode()).hexdigest()
    keys.append(Key(name=name, sha256=sha, domains=allowed, admin=admin))
    rows = [key.model_dump(mode="json", exclude_defaults=True) for key in keys]
    fresh = path.with_name(f".{path.name}.new")  # a file that was cut short would lock everybody out
    fresh.touch(mode=0o600)
    fresh.write_text(yaml.safe_dump(rows, sort_keys=False), encoding="utf-8")
    fresh.replace(path)
    return made
