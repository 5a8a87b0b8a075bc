"""The build cache: what the steps of local builds gave, each under a key that its builder made. Nothing that was pulled is ever here."""

from __future__ import annotations

from sandbox.errors import ImageError, UsageError
from sandbox.image import _layers
from sandbox.image._disk import Root, blob_name
from sandbox.image._leases import Lease
from sandbox.image.digest import Digest
from sandbox.image.documents import Descriptor, decode, encode
from sandbox.image.images import Step


def cache_file(key: str) -> str:
    """Where the step *key* is in a store; a hash, so that no key can be a path."""
    if not isinstance(key, str) or not key:
        raise UsageError(f"build cache: {key!r} is not a key; give a text that names all that the step depends on")
    return f"cache/{Digest.of(key.encode()).hex}"


def find(root: Root, lease: Lease, key: str) -> Step | None:
    """The step, kept from now on; None when it is not there, or not all of it any more."""
    data = root.read(cache_file(key))
    if data is None:
        return None
    stored, step = read_step(data)
    if stored != key:
        return None
    lease.add(*digests_of(step))
    if not is_complete(root, step):
        return None
    root.touch(cache_file(key))  # it is in use: a prune of what is old leaves it
    return step


def steps(root: Root) -> list[tuple[str, Step]]:
    """All that is remembered, with the keys."""
    return [read_step(data) for entry in root.names("cache") if (data := root.read(f"cache/{entry}")) is not None]


def keep(root: Root, lease: Lease, key: str, step: Step) -> None:
    """Remember *step*. Raises: ImageError: something of it is not in the store."""
    if (step.layer is None) != (step.diff_id is None):
        raise UsageError("build cache: a layer is a blob and its diff_id: give both, or neither")
    name = cache_file(key)
    lease.add(*digests_of(step))
    if not is_complete(root, step):
        raise ImageError(f"build cache: something of {', '.join(map(str, digests_of(step)))} is not in the store")
    with root.locked():
        root.replace(name, _encode(key, step))


def digests_of(step: Step) -> list[Digest]:
    """All that a step keeps."""
    layer = None if step.layer is None else step.layer.digest
    return [digest for digest in (step.config, layer, step.diff_id) if digest is not None]


def is_complete(root: Root, step: Step) -> bool:
    """Whether all of it is there."""
    blobs = ([] if step.config is None else [step.config]) + ([] if step.layer is None else [step.layer.digest])
    return all(root.exists(blob_name(digest)) for digest in blobs) and (step.diff_id is None or _layers.has(root, step.diff_id))


def _encode(key: str, step: Step) -> bytes:
    document: dict[str, object] = {"key": key}
    document |= {name: str(value) for name in ("config", "diff_id") if (value := getattr(step, name)) is not None}
    return encode(document | ({} if step.layer is None else {"layer": step.layer.to_json()}))


def read_step(data: bytes) -> tuple[str, Step]:
    """A key and its step, as they are kept."""
    fields = decode(data, what="build cache")
    layer = fields.get("layer")
    return str(fields.get("key")), Step(
        config=Digest.parse(fields["config"]) if "config" in fields else None,
        layer=Descriptor(layer["mediaType"], Digest.parse(layer["digest"]), layer["size"]) if layer else None,
        diff_id=Digest.parse(fields["diff_id"]) if "diff_id" in fields else None,
    )
