"""Blobs given to a registry: not at all if it has them, from another of its repositories, whole, or in pieces.

A blob up to 64 MiB goes in one request. A larger one goes in pieces, so that a broken connection costs one piece: the registry says how far
it has come, and it goes on there. Where a registry takes no pieces, it gets the whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from attrs import define

from sandbox.errors import RegistryError
from sandbox.image._auth import Scope
from sandbox.image._headers import parse_uploaded, resolve
from sandbox.image._http import Body, BrokenTransferError, Response
from sandbox.image.digest import Digest
from sandbox.image.documents import Descriptor
from sandbox.image.registry import PULL, PUSH, Registry

PIECE: Final = 64 << 20
_CHUNK: Final = 1 << 17
_MAX_PIECE: Final = 1 << 30
_MOUNTS: Final = 3  # other repositories that are tried
_REFUSED: Final = frozenset({400, 404, 405, 411, 415, 416, 501})
Told = Callable[[int], object]


@define(eq=False)
class Uploader:
    """Gives blobs to one repository of *registry*. Threads may share it."""

    registry: Registry
    repository: str
    piece: int = PIECE

    def give(self, blob: Descriptor, source: int, *, others: Sequence[str] = (), told: Told) -> bool:
        """Have *blob*, which is read from the descriptor *source*, in the registry; False: it took it from one of the repositories *others*.

        *told* is called with the number of bytes that are there. Raises: RegistryError.
        """
        location = self._mount(blob, others)
        if location is None:
            return False
        tries = 0
        while True:
            try:
                self._give(blob, source, location, told)
            except BrokenTransferError as error:
                tries, location = tries + 1, ""
                self.registry.pause(error, tries)
            else:
                return True

    def _mount(self, blob: Descriptor, others: Sequence[str]) -> str | None:
        """None: the registry has taken it from one of *others*; or where to send it, if it has said so already, or ""."""
        for other in others[:_MOUNTS]:
            location = self._begin(blob, other)
            if location != "":
                return location
        return ""

    def _give(self, blob: Descriptor, source: int, location: str, told: Told) -> None:
        location = location or self._begin(blob) or ""
        if blob.size > self.piece:
            end = self._in_pieces(blob, source, location, told)
            if end is not None:
                self._finish(end, blob.digest, b"", 0)
                return
            location = self._begin(blob) or ""
        self._finish(location, blob.digest, lambda: _Body(source, 0, blob.size, told), blob.size)

    def _begin(self, blob: Descriptor, other: str = "") -> str | None:
        """Where to send it; None: the registry has it now, from the repository *other*; "": it does not let us see that."""
        path = f"/v2/{self.repository}/blobs/uploads/"
        scopes = [Scope(self.repository, PUSH)]
        if other:
            path += f"?mount={blob.digest}&from={other}"
            scopes.append(Scope(other, PULL))
        with self._request("POST", path, scopes=scopes) as response:
            if other and response.status in (401, 403, 404):
                return ""
            self.registry.expect(response, {201, 202} if other else {202}, self.repository)
            return None if response.status == 201 else self._location(response)

    def _in_pieces(self, blob: Descriptor, source: int, location: str, told: Told) -> str | None:
        """Send all of it, and say where to finish; None: the registry takes no pieces."""
        done, tries = 0, 0
        while done < blob.size:
            size = min(self.piece, blob.size - done)
            try:
                found = self._piece(location, _Body(source, done, size, told), done, size)
                if found is None:
                    return None
                location, done, tries = found, done + size, 0
            except BrokenTransferError as error:
                tries += 1
                self.registry.pause(error, tries)
                location, done = self._where(location, blob)
        return location

    def _piece(self, location: str, body: _Body, start: int, size: int) -> str | None:
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size), "Content-Range": f"{start}-{start + size - 1}"}
        with self.registry.once("PATCH", location, scopes=self._scopes, headers=headers, body=lambda: body) as response:
            if response.status in _REFUSED and start == 0:
                return None
            self.registry.expect(response, {202, 204}, self.repository)
            return self._location(response)

    def _where(self, location: str, blob: Descriptor) -> tuple[str, int]:
        """How far the registry has come. Raises: BrokenTransferError: it does not know any more; begin anew."""
        with self._request("GET", location, scopes=self._scopes) as response:
            if response.status not in (202, 204):
                raise BrokenTransferError(f"{self.registry.name}: {blob.digest}: the upload is lost", status=response.status)
            done = parse_uploaded(response.header("Range"))
            if done > blob.size:
                raise RegistryError(f"{self.registry.name}: {blob.digest}: it says that it has {done} of {blob.size} bytes")
            return self._location(response) if response.header("Location") else location, done

    def _finish(self, location: str, digest: Digest, body: Body, size: int) -> None:
        url = f"{location}{'&' if '?' in location else '?'}digest={digest}"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        with self.registry.once("PUT", url, scopes=self._scopes, headers=headers, body=body if size else b"") as response:
            self.registry.expect(response, {201, 204}, f"{self.repository}: {digest}")

    def _request(self, method: str, path: str, *, scopes: Sequence[Scope]) -> Response:
        return self.registry.request(method, path, scopes=scopes, headers={"Content-Length": "0"} if method == "POST" else {})

    @property
    def _scopes(self) -> list[Scope]:
        return [Scope(self.repository, PUSH)]

    def _location(self, response: Response) -> str:
        return resolve(response.url, response.header("Location") or "", what=f"{self.registry.name}: upload")


@define(eq=False)
class _Body:
    """*size* bytes of a file from *start* on, each time that it is iterated over; by position, as threads may share the descriptor."""

    source: int
    start: int
    size: int
    told: Told

    def __iter__(self) -> Iterator[bytes]:
        done = 0
        while done < self.size:
            data = os.pread(self.source, min(_CHUNK, self.size - done), self.start + done)
            if not data:
                raise RegistryError("the file of a blob is shorter than it was")
            yield data
            done += len(data)
            self.told(self.start + done)
