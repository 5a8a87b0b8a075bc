"""Images from registries and to them: `pull`, `push`, `tags`, `login`, `logout`.

Theory of operation of `pull`: the manifest is fetched first, from a mirror or the registry, and with an index the one for our platform. Then a
few threads fetch blobs, the largest first, and hand each layer that is there to others, which have it unpacked in a process of its own: so the
network, the hash of what comes, and as many layers as there are processors are all at work at once. What is in the store already is left
alone. A lease keeps what was fetched until the image is whole; what a broken pull has fetched is taken up by the next one.

The first failure ends all: sockets are shut down, so that no thread waits for a stranger, and the error is raised when all threads have ended.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from attrs import define, evolve, frozen

from sandbox._types import to_count
from sandbox.errors import ImageError, ImageNotFoundError, RegistryError, UsageError
from sandbox.image._access import Access, AccessOptions, to_registry
from sandbox.image._download import Downloader, Teller, first_that_can
from sandbox.image._leases import Lease
from sandbox.image._upload import Uploader
from sandbox.image.credentials import Credentials, CredentialStore
from sandbox.image.digest import Digest
from sandbox.image.documents import MAX_DOCUMENT, Config, Descriptor, Manifest, MediaType, Platform, parse_config, parse_document
from sandbox.image.images import Image
from sandbox.image.progress import OnProgress, Stage
from sandbox.image.reference import Reference
from sandbox.image.registry import PUSH, Document, Registry
from sandbox.image.store import Store
from sandbox.image.tar import UnpackLimits

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from typing_extensions import Unpack

__all__ = ["login", "logout", "pull", "push", "tags"]

CONNECTIONS: Final = 3  # as Docker's daemon
_MAX_CONNECTIONS: Final = 32
_MAX_NESTING: Final = 3  # an index in an index is legal, and rare
_CONFIGS: Final = frozenset({MediaType.OCI_CONFIG, MediaType.DOCKER_CONFIG})
_LAYERS: Final = frozenset(
    {
        MediaType.OCI_LAYER,
        MediaType.OCI_LAYER_GZIP,
        MediaType.OCI_LAYER_ZSTD,
        MediaType.DOCKER_LAYER_GZIP,
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    }
)


def pull(
    reference: str | Reference,
    *,
    store: Store | None = None,
    platform: str | Platform | None = None,
    progress: OnProgress | None = None,
    connections: int = CONNECTIONS,
    limits: UnpackLimits | None = None,
    **access: Unpack[AccessOptions],
) -> Image:
    """Fetch an image into *store* (None: the default one), and give it the name *reference*.

    With a digest (``name@sha256:...``) it is that image or none. *platform*: of an image for several, this one (None: this machine's), as
    ``"linux/arm64"``. *progress* is called with each `Progress`. *connections*: blobs that are fetched at once. *limits*: what a layer may unpack to.
    For *access* see `AccessOptions`. Blocks; threads and processes may pull at once, and fetch and unpack each layer once.

    Raises: ImageNotFoundError: the registry has no such image. RegistryError. ImageError: it is damaged, refused, or not for the platform.
        UnsupportedError: ``sandbox[images]`` is not installed. UsageError.
    """
    name = _to_reference(reference)
    wanted = Platform.parse(platform) if isinstance(platform, str) else platform or Platform.of_this_machine()
    to_count(connections, what="connections", most=_MAX_CONNECTIONS)
    store = store if store is not None else Store()
    how = Access.of(name.registry, **access)
    teller = Teller(progress)
    with ExitStack() as stack:
        names = [(mirror, how.for_mirror(mirror)) for mirror in how.mirrors if mirror != name.registry] + [(name.registry, how)]
        sources = [stack.enter_context(_open(each, reach, teller)) for each, reach in names]
        lease = stack.enter_context(store.lease())
        return _Pull(store, lease, name, wanted, sources, teller, connections, limits).run()


def _open(registry: str, access: Access, teller: Teller) -> Registry:
    return Registry.open(registry, access, on_retry=lambda words: teller.tell(Stage.RETRYING, message=words))


def _to_reference(reference: object) -> Reference:
    if isinstance(reference, Reference):
        return Reference.parse(str(reference))
    if isinstance(reference, str):
        return Reference.parse(reference)
    raise UsageError(f"image: {reference!r} is not a name; write debian:12, ghcr.io/org/app:tag, or name@sha256:...")


@define(eq=False)
class _Pull:
    store: Store
    lease: Lease
    name: Reference
    platform: Platform
    sources: Sequence[Registry]
    teller: Teller
    connections: int
    limits: UnpackLimits | None

    def run(self) -> Image:
        document, manifest = self._find()
        self.teller.tell(Stage.RESOLVED, Descriptor(manifest.media_type, document.digest, len(document.data)))
        self.store.put_document(self.lease, document.data)
        loader = Downloader(self.store, self.lease, self.sources, self.name.repository, self.teller)
        config = self._configuration(loader, manifest)
        jobs = _jobs_of(manifest, config)
        _run_all(self.sources, lambda stack: self._begin(stack, loader, jobs))
        return self.store.add_image(self.lease, document.digest, [self.name])

    def _find(self) -> tuple[Document, Manifest]:
        """The manifest for our platform, by way of indexes."""
        what: str | Digest = self.name.digest or self.name.tag or "latest"
        entry: Descriptor | None = None
        for _ in range(_MAX_NESTING):
            document = self._document(what, entry)
            found = parse_document(document.data, media_type=document.media_type, what=str(self.name))
            if isinstance(found, Manifest):
                return document, found
            entry = found.select(self.platform)
            what = entry.digest
        raise ImageError(f"{self.name}: indexes in indexes, more than {_MAX_NESTING} deep")

    def _document(self, what: str | Digest, entry: Descriptor | None) -> Document:
        """A document from whoever has it; those whose hash is known already, from the store."""
        if isinstance(what, Digest):
            self.lease.add(what)
            if self.store.has_blob(what):
                return Document(self.store.read_document(what), "", what)
        try:
            found = first_that_can(self.sources, lambda source: source.manifest(self.name.repository, what))
        except RegistryError as error:
            if error.status != 404:
                raise
            raise ImageNotFoundError(f"{self.name}: {error}") from None
        if entry is not None and entry.size != len(found.data):
            raise ImageError(f"{self.name}@{what}: {len(found.data)} bytes, and its descriptor promises {entry.size}")
        return found

    def _configuration(self, loader: Downloader, manifest: Manifest) -> Config:
        described = manifest.config
        if described.media_type not in _CONFIGS:
            raise ImageError(f"{self.name}: no image, but something else that registries keep ({described.media_type[:100]!r})")
        if described.size > MAX_DOCUMENT:
            raise ImageError(f"{self.name}: a configuration of {described.size} bytes; at most {MAX_DOCUMENT} are taken")
        loader.fetch(described)
        config = parse_config(self.store.read_document(described.digest), what=f"{self.name}: configuration")
        if not self.platform.fits(config.platform):
            raise ImageError(f"{self.name}: it is for {config.platform}, not {self.platform}; name the other one by platform= (--platform)")
        return config

    def _begin(self, stack: ExitStack, loader: Downloader, jobs: list[_Job]) -> list[Future[Any]]:
        """Start the threads; what they give may be more to wait for."""
        from concurrent.futures import ThreadPoolExecutor

        unpackers = stack.enter_context(ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="sandbox-unpack"))
        fetchers = stack.enter_context(ThreadPoolExecutor(self.connections, thread_name_prefix="sandbox-pull"))
        stack.callback(unpackers.shutdown, wait=False, cancel_futures=True)
        stack.callback(fetchers.shutdown, wait=False, cancel_futures=True)
        return [fetchers.submit(self._fetch, loader, job, unpackers) for job in jobs]

    def _fetch(self, loader: Downloader, job: _Job, unpackers: Executor) -> list[Future[None]]:
        loader.fetch(job.blob)
        return [unpackers.submit(self._unpack, job.blob, diff_id) for diff_id in job.diff_ids]

    def _unpack(self, blob: Descriptor, diff_id: Digest) -> None:
        if any(source.transport.stopped.is_set() for source in self.sources):
            return
        self.lease.add(diff_id)
        if self.store.has_layer(diff_id):
            return
        self.teller.tell(Stage.UNPACKING, blob, blob.size)
        source = self.store.open_blob(blob.digest)
        try:
            self.store.unpack_layer(self.lease, diff_id, source, blob.media_type, limits=self.limits)
        finally:
            os.close(source)
        self.teller.tell(Stage.UNPACKED, blob, blob.size)


@frozen
class _Job:
    """A blob, and what it unpacks to: one layer, unless the configuration lies."""

    blob: Descriptor
    diff_ids: tuple[Digest, ...]


def _jobs_of(manifest: Manifest, config: Config) -> list[_Job]:
    """Each blob once, the largest first. Raises: ImageError: manifest and configuration do not fit."""
    if len(manifest.layers) != len(config.diff_ids):
        raise ImageError(f"the manifest has {len(manifest.layers)} layers, and the configuration {len(config.diff_ids)}")
    found: dict[Digest, _Job] = {}
    for blob, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
        if blob.media_type not in _LAYERS:
            raise ImageError(f"layer {blob.digest}: {blob.media_type[:100]!r} is not a layer that can be unpacked here")
        known = found.setdefault(blob.digest, _Job(blob, ()))
        if known.blob.size != blob.size:
            raise ImageError(f"layer {blob.digest}: it has two sizes, {known.blob.size} and {blob.size}")
        if diff_id not in known.diff_ids:
            found[blob.digest] = evolve(known, diff_ids=(*known.diff_ids, diff_id))
    return sorted(found.values(), key=lambda job: -job.blob.size)


def _run_all(registries: Sequence[Registry], begin: Callable[[ExitStack], list[Future[Any]]]) -> None:
    """Wait for all that *begin* starts, and for what that gives. Raises: the first error, when all have ended."""
    from concurrent.futures import FIRST_COMPLETED, wait

    with ExitStack() as stack:
        pending = set(begin(stack))
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    pending |= set(future.result() or ())
        except BaseException:
            for registry in registries:
                registry.abort()
            raise


# ---- To a registry ----


def push(
    reference: str | Reference,
    *,
    image: Image | str | None = None,
    store: Store | None = None,
    progress: OnProgress | None = None,
    connections: int = CONNECTIONS,
    **access: Unpack[AccessOptions],
) -> Digest:
    """Give an image to a registry under the name *reference*, and say by which digest it has it.

    *image*: which one of *store* (None: the default store); None: the one of this name. What the registry has is not sent, and what another of its
    repositories has, by which the image is named too, is taken from there. The manifest is sent last: a name never stands for a part.
    For *access* see `AccessOptions`; mirrors are not asked. Blocks.

    Raises: ImageNotFoundError: the store has no such image. RegistryError. ImageError: something of it is not in the store. UsageError.
    """
    name = _to_reference(reference)
    if name.digest is not None or name.tag is None:
        raise UsageError(f"push: {name} has a digest, which is what comes of pushing; give name:tag")
    to_count(connections, what="connections", most=_MAX_CONNECTIONS)
    store = store if store is not None else Store()
    teller = Teller(progress)
    how = Access.of(name.registry, **access)
    with ExitStack() as stack:
        lease = stack.enter_context(store.lease())
        found = image if isinstance(image, Image) else store.get(image if image is not None else name)
        lease.add(found.manifest)
        data = store.read_document(found.manifest)
        manifest = parse_document(data, what=str(name))
        if not isinstance(manifest, Manifest):
            raise ImageError(f"{name}: an index, not an image")
        parts = [manifest.config, *manifest.layers]
        if missing := next((part.digest for part in parts if not store.has_blob(part.digest)), None):
            raise ImageError(f"{name}: blob {missing} is not in the store, and nothing was sent; pull or build the image again")
        registry = stack.enter_context(_open(name.registry, how, teller))
        _Push(store, registry, name.repository, _sharing(store, name), teller).run(parts, connections)
        digest = registry.put_manifest(name.repository, name.tag, data, manifest.media_type)
        teller.tell(Stage.UPLOADED, Descriptor(manifest.media_type, digest, len(data)), len(data))
        return digest


def _sharing(store: Store, name: Reference) -> dict[Digest, list[str]]:
    """For each blob, the other repositories of the registry that should have it, as an image with it is named so here."""
    found: dict[Digest, list[str]] = {}
    try:
        for image in store.images():
            others = {each.repository for each in map(Reference.parse, image.names) if each.registry == name.registry} - {name.repository}
            manifest = parse_document(store.read_document(image.manifest)) if others else None
            for layer in manifest.layers if isinstance(manifest, Manifest) else ():
                found.setdefault(layer.digest, []).extend(sorted(others))
    except ImageError:  # another image that is damaged, or was removed meanwhile, does not hinder this one
        return found
    return found


@define(eq=False)
class _Push:
    store: Store
    registry: Registry
    repository: str
    sharing: dict[Digest, list[str]]
    teller: Teller

    def run(self, blobs: Iterable[Descriptor], connections: int) -> None:
        from concurrent.futures import ThreadPoolExecutor

        wanted = list({blob.digest: blob for blob in blobs}.values())

        def begin(stack: ExitStack) -> list[Future[Any]]:
            threads = stack.enter_context(ThreadPoolExecutor(connections, thread_name_prefix="sandbox-push"))
            stack.callback(threads.shutdown, wait=False, cancel_futures=True)
            return [threads.submit(self._give, blob) for blob in wanted]

        _run_all([self.registry], begin)

    def _give(self, blob: Descriptor) -> None:
        if self.registry.has_blob(self.repository, blob.digest, actions=PUSH):
            self.teller.tell(Stage.PRESENT, blob, blob.size)
            return
        source = self.store.open_blob(blob.digest)
        try:
            self.teller.tell(Stage.UPLOADING, blob)
            sent = Uploader(self.registry, self.repository).give(
                blob, source, others=self.sharing.get(blob.digest, ()), told=lambda done: self.teller.tell(Stage.UPLOADING, blob, done)
            )
        finally:
            os.close(source)
        self.teller.tell(Stage.UPLOADED if sent else Stage.MOUNTED, blob, blob.size)


# ---- What is there, and who we are ----


def tags(repository: str | Reference, **access: Unpack[AccessOptions]) -> list[str]:
    """The tags of ``debian``, ``ghcr.io/org/app``, in the registry's order. Raises: ImageNotFoundError; RegistryError; UsageError."""
    name = _to_reference(repository)
    with Registry.open(name.registry, Access.of(name.registry, **access)) as registry:
        try:
            return registry.tags(name.repository)
        except RegistryError as error:
            if error.status != 404:
                raise
            raise ImageNotFoundError(f"{name.name}: {error}") from None


def login(registry: str, username: str, password: str, *, keep: CredentialStore | None = None, **access: Unpack[AccessOptions]) -> str:
    """See whether *registry* takes the password, and keep it (None: where Docker does); say where: a path, or the name of a helper.

    A registry that gives a token to be used instead has that kept, and not the password.
    Raises: RegistryError: it does not. ImageError: it cannot be kept. UsageError.
    """
    host = to_registry(registry)
    who = Credentials(username, password)
    if not username or not password:
        raise UsageError("login: neither the user nor the password may be empty")
    with Registry.open(host, evolve(Access.of(host, **access), credentials=who)) as client:
        client.ping()
        token = client.auth.identity_token
    kept = Credentials(username, identity_token=token) if token else who
    return (keep if keep is not None else CredentialStore()).put(host, kept)


def logout(registry: str, *, keep: CredentialStore | None = None) -> bool:
    """Forget the password for *registry*; False if there was none. Raises: ImageError; UsageError."""
    return (keep if keep is not None else CredentialStore()).erase(to_registry(registry))
