"""Names of images, normalised as Docker does: ``debian`` is ``docker.io/library/debian:latest``."""

from __future__ import annotations

import re
from typing import Final

from attrs import evolve, frozen

from sandbox.errors import UsageError
from sandbox.image.digest import Digest

DOCKER_HUB: Final = "docker.io"
_LIBRARY: Final = "library/"
_MAX_NAME: Final = 255  # distribution's reference package: of the repository, its registry included

# The grammar of distribution/reference. A component: lower case, separators ("." "_" "__" or dashes) only between letters and digits.
_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_LABEL: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST: Final = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?", re.ASCII)
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)


@frozen
class Reference:
    """An image by name: where it is, and which one; *tag*, *digest*, or both (then the digest decides)."""

    registry: str  # host, with a port perhaps: "docker.io", "localhost:5000"
    repository: str  # "library/debian"
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read what people write; the tag is ``latest`` where neither a tag nor a digest is given.

        The first part is a registry if it has a dot or a port, or is ``localhost``; otherwise the registry is Docker's.
        Raises: UsageError: it is no name of an image.
        """
        if not isinstance(text, str) or not text:
            raise UsageError(f"image: {text!r} is not a name; write debian:12, ghcr.io/org/app:tag, or name@sha256:...")
        name, at, pinned = text.partition("@")
        digest = Digest.parse(pinned) if at else None
        name, tag = _split_tag(name)
        registry, repository = _split_registry(name)
        if not _HOST.fullmatch(registry):
            raise UsageError(f"image {text!r}: {registry!r} is not the name of a registry")
        if not _PATH.fullmatch(repository):
            hint = "; names are in lower case" if repository != repository.lower() else ""
            raise UsageError(f"image {text!r}: {repository!r} is not a repository{hint}")
        if len(registry) + 1 + len(repository) > _MAX_NAME:
            raise UsageError(f"image {text[:50]!r}...: the name has more than {_MAX_NAME} characters")
        if tag is not None and not _TAG.fullmatch(tag):
            raise UsageError(f"image {text!r}: {tag!r} is not a tag; letters, digits, '_', '.' and '-', 128 at most")
        return cls(registry, repository, tag if tag is not None or digest is not None else "latest", digest)

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        tag = "" if self.tag is None else f":{self.tag}"
        return f"{self.name}{tag}" + ("" if self.digest is None else f"@{self.digest}")

    @property
    def familiar(self) -> str:
        """As people write it: without Docker's registry and ``library/``."""
        name = self.name.removeprefix(f"{DOCKER_HUB}/")
        short = name.removeprefix(_LIBRARY) if name != self.name and name.count("/") == 1 else name
        return short + str(self).removeprefix(self.name)

    def pinned(self, digest: Digest) -> Reference:
        """The same repository, by *digest* alone."""
        return evolve(self, tag=None, digest=digest)


def _split_tag(name: str) -> tuple[str, str | None]:
    head, colon, tail = name.rpartition(":")
    if not colon or "/" in tail:  # the colon was a port's
        return name, None
    return head, tail


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        return DOCKER_HUB, name if slash else _LIBRARY + name
    if first in ("index.docker.io", "registry-1.docker.io"):
        first = DOCKER_HUB
    if first == DOCKER_HUB and "/" not in rest:
        rest = _LIBRARY + rest
    return first, rest
