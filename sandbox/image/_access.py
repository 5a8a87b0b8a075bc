"""How registries are reached: what the caller says, and what ``registries.toml`` says of each.

``/etc/sandbox/registries.toml``, then ``$XDG_CONFIG_HOME/sandbox/registries.toml`` (``~/.config``), whose tables replace those of the first;
or the one file that ``$SANDBOX_REGISTRIES`` names. A table a registry::

    ["docker.io"]
    mirrors = ["mirror.example.com:5000"]

    ["registry.example.com:5000"]
    insecure = true                        # plain http
    ca = "/etc/ssl/private/our-ca.pem"     # besides the system's
    auth-hosts = ["login.example.com"]     # may make tokens, and gets the password for that

An argument of a call replaces what the file says. A word that we do not know is an error: it may have been meant to make things safer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypedDict, cast

from attrs import Factory, evolve, frozen

from sandbox._types import StrPath
from sandbox.errors import UsageError
from sandbox.image._http import Patience
from sandbox.image.credentials import Credentials, CredentialStore
from sandbox.image.reference import Reference

if TYPE_CHECKING:
    from typing_extensions import Unpack

_SYSTEM: Final = "/etc/sandbox/registries.toml"
_MOST: Final = 1 << 20
_HOST: Final = re.compile(r"[A-Za-z0-9.-]{1,253}", re.ASCII)


class AccessOptions(TypedDict, total=False):
    """What `pull`, `push`, `tags` and `login` take besides.

    - credentials: a user and a password, or where they are kept; by default Docker's file and helpers, as `CredentialStore` reads them.
    - insecure: speak plain http with the registry if it has no https. With this machine it is always allowed.
    - ca: a file of certificate authorities (PEM) to be believed besides the system's.
    - mirrors: registries (``host``, ``host:port``) that are asked first, in this order; their own credentials are used.
    - auth_hosts: hosts that may make tokens for the registry, and so get the password, though they are on another domain.
    - patience: how long to wait, and how often to try.
    """

    credentials: Credentials | CredentialStore | None
    insecure: bool | None
    ca: StrPath | None
    mirrors: Sequence[str] | None
    auth_hosts: Sequence[str] | None
    patience: Patience


@frozen
class Access:
    """How one registry is reached."""

    credentials: Credentials | CredentialStore = Factory(CredentialStore)
    insecure: bool = False
    ca: str | None = None
    mirrors: tuple[str, ...] = ()
    auth_hosts: tuple[str, ...] = ()
    patience: Patience = Factory(Patience)

    @classmethod
    def of(cls, registry: str, **options: Unpack[AccessOptions]) -> Access:
        """What the files say of *registry*, and the caller instead of them. Raises: UsageError."""
        unknown = options.keys() - AccessOptions.__annotations__.keys()
        if unknown:
            raise UsageError(f"there is no option {', '.join(sorted(unknown))}; there are {', '.join(AccessOptions.__annotations__)}")
        told = _checked(registry, {name: value for name, value in options.items() if value is not None and name not in ("credentials", "patience")})
        access = evolve(_configured(registry), **told)
        credentials, patience = options.get("credentials"), options.get("patience")
        return evolve(
            access,
            credentials=credentials if credentials is not None else access.credentials,
            patience=patience if patience is not None else access.patience,
        )

    def for_mirror(self, mirror: str) -> Access:
        """How a mirror is reached: as the files say of it, with the caller's time and authorities; never with credentials of another host."""
        store = self.credentials if isinstance(self.credentials, CredentialStore) else CredentialStore()
        found = _configured(mirror)
        patience = evolve(self.patience, attempts=min(self.patience.attempts, 2))  # there is somebody else to ask
        return evolve(found, credentials=store, ca=found.ca or self.ca, mirrors=(), patience=patience)

    def credentials_for(self, registry: str) -> Credentials | None:
        """Who we are to *registry*. Raises: ImageError: the file of credentials is no good."""
        if isinstance(self.credentials, Credentials):
            return self.credentials
        return self.credentials.get(registry)


def to_registry(text: object, *, what: str = "registry") -> str:
    """Check the name of a registry: a host, perhaps with a port. Raises: UsageError."""
    if isinstance(text, str):
        text = text.removeprefix("https://").removesuffix("/")
        try:
            found = Reference.parse(f"{text}/name")
        except UsageError:
            found = None
        # A single word is a repository of Docker's to `Reference`, and is refused here.
        if found is not None and found.repository == "name":
            return found.registry
        if text in ("docker.io", "index.docker.io", "registry-1.docker.io", "index.docker.io/v1"):
            return "docker.io"
    raise UsageError(f"{what}: {text!r} is not a registry; write a host, such as ghcr.io or localhost:5000")


def _configured(registry: str) -> Access:
    tables: dict[str, Any] = {}
    for path in _files():
        for name, table in _read(path).items():
            tables[to_registry(name, what=path)] = _checked(f"{path}: {name}", _with_underscores(table, f"{path}: {name}"))
    return Access(**tables.get(registry, {}))


def _files() -> list[str]:
    told = os.environ.get("SANDBOX_REGISTRIES")
    if told:
        return [told]
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [path for path in (_SYSTEM, os.path.join(home, "sandbox/registries.toml")) if os.path.exists(path)]


def _read(path: str) -> dict[str, Any]:
    import tomllib

    try:
        with open(path, "rb") as file:
            data = file.read(_MOST + 1)
        if len(data) > _MOST:
            raise UsageError(f"{path}: more than {_MOST} bytes")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path}: {error}") from None


def _with_underscores(table: object, what: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise UsageError(f'{what}: not a table; write ["{what.rpartition(" ")[2]}"] and the settings below it')
    return {name.replace("-", "_"): value for name, value in cast("dict[str, Any]", table).items()}


def _checked(what: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for `Access`. Raises: UsageError."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        match name:
            case "insecure" if isinstance(value, bool):
                found[name] = value
            case "ca" if isinstance(value, (str, os.PathLike)):
                found[name] = os.fspath(cast("StrPath", value))
            case "mirrors":
                found[name] = tuple(to_registry(each, what=f"{what}: mirrors") for each in _list(value, f"{what}: {name}"))
            case "auth_hosts":
                found[name] = tuple(_to_host(each, f"{what}: auth-hosts") for each in _list(value, f"{what}: {name}"))
            case "insecure" | "ca":
                raise UsageError(f"{what}: {name} = {value!r} is not {'true or false' if name == 'insecure' else 'the path of a file'}")
            case _:
                raise UsageError(f"{what}: there is no setting {name!r}; there are insecure, ca, mirrors and auth-hosts")
    return found


def _list(value: object, what: str) -> Sequence[object]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise UsageError(f"{what}: {value!r} is not a list")
    return cast("Sequence[object]", value)


def _to_host(value: object, what: str) -> str:
    if not isinstance(value, str) or not _HOST.fullmatch(value):
        raise UsageError(f"{what}: {value!r} is not a host (without a port)")
    return value.lower()
