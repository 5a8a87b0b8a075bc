"""Blobs fetched into the store: from where a broken transfer stopped, from mirrors first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from attrs import define, field

from sandbox.errors import ImageError, RegistryError
from sandbox.image._blobs import BlobWriter
from sandbox.image._http import BrokenTransferError
from sandbox.image._leases import Lease
from sandbox.image.documents import Descriptor
from sandbox.image.progress import OnProgress, Progress, Stage
from sandbox.image.registry import Registry
from sandbox.image.store import Store

_ENOUGH: Final = 1 << 20  # a connection that brought this much was worth it: the count of tries begins anew
T = TypeVar("T")


@define(eq=False)
class Teller:
    """Tells progress, one thread at a time."""

    progress: OnProgress | None
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def tell(self, stage: Stage, what: Descriptor | None = None, done: int = 0, message: str = "") -> None:
        """Pass it on to who wants to know."""
        if self.progress is None:
            return
        news = Progress(stage, None if what is None else what.digest, done, 0 if what is None else what.size, message)
        with self._lock:
            self.progress(news)


def first_that_can(sources: Sequence[Registry], ask: Callable[[Registry], T]) -> T:
    """The answer of the first source that has one. All but the last are mirrors: one that fails is not asked again.

    Raises: RegistryError: the last one's.
    """
    for mirror in sources[:-1]:
        try:
            if not mirror.has_failed:
                return ask(mirror)
        except ImageError as error:  # it costs time, and nothing more
            if mirror.transport.stopped.is_set():
                raise
            mirror.has_failed = not (isinstance(error, RegistryError) and error.status == 404)  # it need not have everything
    return ask(sources[-1])


@define(eq=False)
class Downloader:
    """Fetches blobs of one repository into *store*, under *lease*. Threads may share it."""

    store: Store
    lease: Lease
    sources: Sequence[Registry]
    repository: str
    teller: Teller

    def fetch(self, blob: Descriptor) -> None:
        """Have *blob* in the store. Raises: RegistryError; ImageError: what came is not what the digest names."""
        if not self._fetch(blob) and not self._fetch(blob):
            raise RegistryError(f"{blob.digest}: what comes is other content, or breaks off again and again")

    def _fetch(self, blob: Descriptor) -> bool:
        """False: it came in several parts, which are not of one whole, and are gone now. It is worth another try, from its beginning."""
        with self.store.write_blob(self.lease, blob.digest, blob.size) as writer:
            if writer.is_complete:
                writer.commit()
                self.teller.tell(Stage.PRESENT, blob, blob.size)
                return True
            in_parts = writer.offset > 0
            self.teller.tell(Stage.DOWNLOADING, blob, writer.offset)
            in_parts |= first_that_can(self.sources, lambda source: self._fill(writer, blob, source))
            try:
                writer.commit()
            except ImageError:
                if not in_parts:
                    raise
                return False
        self.teller.tell(Stage.DOWNLOADED, blob, blob.size)
        return True

    def _fill(self, writer: BlobWriter, blob: Descriptor, source: Registry) -> bool:
        """Fetch the rest; whether it came after a part that was there."""
        tries = 0
        while writer.offset < blob.size:
            before = writer.offset
            try:
                self._go_on(writer, blob, source)
            except BrokenTransferError as error:
                tries = 1 if writer.offset - before >= _ENOUGH else tries + 1
                source.pause(error, tries)
            else:
                return before > 0
        return False

    def _go_on(self, writer: BlobWriter, blob: Descriptor, source: Registry) -> None:
        with source.blob(self.repository, blob.digest, blob.size, start=writer.offset) as chunks:
            for chunk in chunks:
                if writer.offset + len(chunk) > blob.size:
                    raise RegistryError(f"{source.name}: {blob.digest}: more than the {blob.size} bytes that its descriptor promises")
                writer.write(chunk)
                self.teller.tell(Stage.DOWNLOADING, blob, writer.offset)
        if writer.offset < blob.size:
            raise BrokenTransferError(f"{source.name}: {blob.digest}: it ended after {writer.offset} of {blob.size} bytes")
