"""What all steps of a build share: the store, the contexts, the cache, and the way to tell how it goes."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from sandbox.builder._copying import Sources
from sandbox.builder._hashes import Hashes
from sandbox.builder._state import LayerRef, State
from sandbox.builder._tree import Tree
from sandbox.builder._workshop import Workshop
from sandbox.builder.events import Event
from sandbox.errors import ImageError, SandboxError
from sandbox.image import Config, Descriptor, Digest, Image, Lease, Manifest, MediaType, Platform, Reference, Step, Store

if TYPE_CHECKING:
    from sandbox import Container


class StoppedError(SandboxError):
    """Another stage failed, or the caller was interrupted; what this one has come to is of no use."""


@frozen(eq=False, repr=False)
class Options:
    """What `build` was told, checked."""

    build_args: Mapping[str, str]
    labels: Mapping[str, str]
    secrets: Mapping[str, bytes]
    network: object
    memory: int | str | None
    cpus: float | None
    pids: int | None
    timeout: float | None
    no_cache: bool
    pull: bool
    platform: Platform
    epoch: int | None


@define(eq=False, repr=False)
class Job:
    """One build."""

    store: Store
    lease: Lease
    workshop: Workshop
    options: Options
    context: Sources
    contexts: Mapping[str, Sources]
    hashes: Hashes
    now: int
    tell: Callable[[Event], None]
    stack: ExitStack
    stopping: threading.Event = field(factory=threading.Event)
    images: Mapping[str, str] = field(factory=dict[str, str])  # contexts that are images, by their names
    _running: set[Container] = field(factory=set[Any], init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def report(self, event: Event) -> None:
        """Tell of *event*; one at a time, whichever stage it is of."""
        with self._lock:
            self.tell(event)

    # ---- Stopping ----

    def stop(self) -> None:
        """Let no stage begin another step, and end what runs."""
        with self._lock:
            self.stopping.set()
            running = list(self._running)
        for container in running:
            container.kill()

    def check(self) -> None:
        """Raises: StoppedError: the build was stopped."""
        if self.stopping.is_set():
            raise StoppedError

    @contextmanager
    def runs(self, container: Container) -> Generator[None]:
        """While *container* runs, `stop` ends it. Raises: StoppedError: the build was stopped already."""
        with self._lock:
            if self.stopping.is_set():
                raise StoppedError
            self._running.add(container)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(container)

    @property
    def time(self) -> str:
        """The time that what is made now bears."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.now))

    # ---- Trees ----

    def tree_of(self, state: State) -> Tree:
        """The files of an image in the making."""
        return Tree([self.store.layer_path(layer.diff_id) for layer in state.layers], layered=True)

    def tree_at(self, path: str) -> Tree:
        """A directory of the host, pinned until the build ends."""
        tree = Tree([path])
        self.stack.callback(tree.close)
        return tree

    # ---- Layers ----

    def cached(self, key: str) -> tuple[LayerRef | None, str] | None:
        """The layer (None: it made none) and the time of a step that was done before; None when it was not."""
        if self.options.no_cache:
            return None
        step = self.store.cached(self.lease, key)
        if step is None or step.config is None:
            return None
        layer = LayerRef(step.diff_id, step.layer) if step.layer is not None and step.diff_id is not None else None
        return layer, parse_created(self.store.read_document(step.config))

    def remember(self, key: str, layer: LayerRef | None) -> None:
        """Keep what a step gave under *key*."""
        note = self.store.put_document(self.lease, Config(Platform(), (), created=self.time).encode())
        self.store.remember(self.lease, key, Step(note) if layer is None else Step(note, layer.blob, layer.diff_id))

    def add_layer(self, write: Callable[[Callable[[bytes], object]], object]) -> LayerRef:
        """Make a layer of the tar that *write* writes, and unpack it."""
        with self.store.write_blob(self.lease) as writer:
            write(writer.write)
            digest = writer.commit()
        self.lease.add(digest)
        fd = self.store.open_blob(digest)
        try:
            self.store.unpack_layer(self.lease, digest, fd, MediaType.OCI_LAYER)
        finally:
            os.close(fd)
        return LayerRef(digest, Descriptor(MediaType.OCI_LAYER, digest, self.store.blob_size(digest)))

    # ---- Images ----

    def add_image(self, config: Config, blobs: tuple[Descriptor, ...], names: tuple[Reference, ...] = ()) -> Image:
        """Put an image into the store."""
        data = config.encode()
        self.store.put_document(self.lease, data)
        manifest = Manifest(Descriptor.of(MediaType.OCI_CONFIG, data), blobs).encode()
        return self.store.add_image(self.lease, self.store.put_document(self.lease, manifest), names, built_here=True)

    def hold(self, image: Image) -> State:
        """Take *image* as a base: it stays until the build ends."""
        from sandbox.image.documents import parse_document

        self.lease.add(image.manifest)
        manifest = parse_document(self.store.read_document(image.manifest))
        if not isinstance(manifest, Manifest):
            raise ImageError(f"image {image.id}: its manifest is an index")
        return State.of(image.config, manifest.layers)


def parse_created(data: bytes) -> str:
    """The time in a configuration."""
    from sandbox.image.documents import parse_config

    return parse_config(data).created


def digest_of(*parts: str | Digest) -> str:
    """A key of several parts."""
    return hashlib.sha256("\0".join(str(part) for part in parts).encode("utf-8", "surrogateescape")).hexdigest()
