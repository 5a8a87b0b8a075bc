"""Digests: what names content, and proves that it is that content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Final

from attrs import frozen

from sandbox.errors import ImageError, UsageError

# OCI image-spec, descriptor.md: the two registered algorithms; sha256 must be known. Lower case only.
_LENGTHS: Final = {"sha256": 64, "sha512": 128}
_DIGEST: Final = re.compile(r"(sha256|sha512):([0-9a-f]+)", re.ASCII)


@frozen(order=True)
class Digest:
    """An algorithm and a hash in hexadecimal; safe as a file name, whoever wrote it."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: object) -> Digest:
        """Read ``sha256:...``.

        Raises: UsageError: it is anything else, however alike (``sha256:../../x``).
        """
        match = _DIGEST.fullmatch(text) if isinstance(text, str) else None
        if match is None or len(match[2]) != _LENGTHS[match[1]]:
            shown = repr(text)
            raise UsageError(f"digest: {shown[:100]} is not sha256: or sha512: with 64 or 128 hexadecimal digits in lower case")
        return cls(match[1], match[2])

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """The sha256 of *data*."""
        return cls("sha256", hashlib.sha256(data).hexdigest())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @property
    def short(self) -> str:
        """The first 12 digits, as people quote it."""
        return self.hex[:12]


class Verifier:
    """Hashes and counts a stream; `finish` says whether it was what *digest* and *size* promise.

    More than *size* bytes are refused at once: a source that never ends costs nothing.
    """

    def __init__(self, digest: Digest, size: int | None, *, what: str = "blob") -> None:
        self._digest, self._size, self._what = digest, size, what
        self._hash = hashlib.new(digest.algorithm)
        self.count = 0

    def update(self, data: bytes) -> None:
        """Take the next bytes. Raises: ImageError: there are more than promised."""
        self.count += len(data)
        if self._size is not None and self.count > self._size:
            raise ImageError(f"{self._what} {self._digest}: more than the {self._size} bytes that its descriptor promises")
        self._hash.update(data)

    def finish(self) -> None:
        """Check the whole. Raises: ImageError: too short, or other content."""
        if self._size is not None and self.count != self._size:
            raise ImageError(f"{self._what} {self._digest}: {self.count} bytes, and its descriptor promises {self._size}")
        if self._hash.hexdigest() != self._digest.hex:
            found = f"{self._digest.algorithm}:{self._hash.hexdigest()}"
            raise ImageError(f"{self._what} {self._digest}: the content is {found}; it was damaged or exchanged")

    def check(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass *chunks* on, and check them at the end."""
        for chunk in chunks:
            self.update(chunk)
            yield chunk
        self.finish()
