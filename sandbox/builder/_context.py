"""A context that comes as a tar: a file, or a stream. It is unpacked into the build's own directory, and read from there.

Whoever made it may be a stranger: no link in it leads out (its Dockerfile and .dockerignore are looked up within it, like all that COPY takes), and
owners and set-id bits that it names are lost, since files of a context are root's in an image anyway.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Final, TypeGuard, cast

from sandbox.builder._source import MAX_DOCKERFILE
from sandbox.builder._tree import Tree
from sandbox.builder.ignore import Patterns
from sandbox.builder.instructions import Dockerfile, parse
from sandbox.errors import ImageError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from sandbox.builder._workshop import Workshop

StrPath = str | os.PathLike[str]
HEAD: Final = 512  # bytes that tell an archive from a Dockerfile: one header of a tar
_CHUNK: Final = 1 << 20
_REMOTE: Final = re.compile(r"(?:https?|git|ssh)://|git@|github\.com/", re.ASCII)


class _Joined:
    """A stream whose first bytes were read already, to see what it is."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head, self._rest = head, rest

    def read(self, most: int = -1) -> bytes:
        """The next bytes, as they come."""
        head, self._head = self._head, b""
        return head or self._rest.read(most)


def is_stream(context: object) -> TypeGuard[IO[bytes]]:
    """Whether it can be read from."""
    return hasattr(context, "read")


def is_archive(context: StrPath) -> bool:
    """Whether it is a file, and so must be a tar. Raises: UnsupportedError: it is somewhere else."""
    path = os.fspath(context)
    if _REMOTE.match(path) and not os.path.exists(path):
        raise UnsupportedError(
            f"context: {path[:200]!r} is not on this machine, and a build fetches none",
            feature="remote-context",
            remedy="clone or download it first, and give the directory, or the tar",
        )
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False  # what is wrong with it is told where directories are opened


def told_apart(stream: IO[bytes], dockerfile: object) -> IO[bytes] | bytes:
    """A tar of a context, compressed or not, to be read from; or the text of a Dockerfile, as ``docker build -`` takes both.

    Raises: UsageError: it is a Dockerfile, and *dockerfile* another one.
    """
    head = b""
    while len(head) < HEAD and (piece := stream.read(HEAD - len(head))):
        if not isinstance(piece, bytes):  # pyright: ignore[reportUnnecessaryIsInstance] - a text file, say
            raise UsageError("context: it gives text; open it in binary mode")
        head += piece
    if _begins_archive(head):
        return cast("IO[bytes]", _Joined(head, stream))
    if dockerfile is not None:
        raise UsageError("context: what is read is no tar, and there is a Dockerfile besides; give one of the two")
    text = head
    while len(text) <= MAX_DOCKERFILE and (piece := stream.read(_CHUNK)):
        text += piece
    return text


def _begins_archive(head: bytes) -> bool:
    import tarfile

    from sandbox.image.compression import kind_of

    if kind_of(head) != "none" or head == bytes(HEAD):  # the latter begins the end of a tar: there is nothing in it
        return True
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def unpack_context(context: StrPath | IO[bytes], workshop: Workshop) -> str:
    """The directory with what is in the tar *context*. Raises: ImageError: it is none, or has what nobody unpacks (devices are left out)."""
    from sandbox.image.compression import decompress
    from sandbox.image.unpack import unpack

    directory = workshop.directory()
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchmod(place, 0o755)  # as COPY . would have it of a directory; who gets there has come by one that is closed
        unpack(decompress(_chunks(context)), place, keep_owners=False, rootfs=True)
    except ImageError as error:
        raise ImageError(f"context: {error}") from error
    finally:
        os.close(place)
    return directory


def _chunks(context: StrPath | IO[bytes]) -> Iterator[bytes]:
    if is_stream(context):
        while chunk := context.read(_CHUNK):
            yield chunk
        return
    with open(cast("StrPath", context), "rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def read_within(directory: str, dockerfile: StrPath | bytes | None) -> tuple[Dockerfile, Patterns]:
    """The Dockerfile of a context that was unpacked into *directory* (bytes: the text itself), and what of the context is left out."""
    tree = Tree([directory])
    try:
        if isinstance(dockerfile, bytes):
            return parse(dockerfile), _ignored(tree, (".dockerignore",))
        path = "Dockerfile" if dockerfile is None else os.fspath(dockerfile)
        text = _read(tree, path)
        if text is None and dockerfile is None and (text := _read(tree, "dockerfile")) is not None:
            path = "dockerfile"
        if text is None:
            raise UsageError(f"dockerfile: there is no {path!r} in the context; dockerfile= (-f) names another one")
        return parse(text, path), _ignored(tree, (f"{path}.dockerignore", ".dockerignore"))
    finally:
        tree.close()


def _ignored(tree: Tree, names: tuple[str, ...]) -> Patterns:
    for name in names:
        if (text := _read(tree, name)) is not None:
            return Patterns.parse(text.decode("utf-8", "surrogateescape"), what=name)
    return Patterns()


def _read(tree: Tree, path: str) -> bytes | None:
    found = tree.locate(path).entry
    return tree.read(path, MAX_DOCKERFILE + 1) if found is not None and found.is_file else None
