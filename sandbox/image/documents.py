"""The documents of an image: index, manifest, configuration; OCI's and Docker's, read with bounds and written one way.

They come from strangers. A document is at most `MAX_DOCUMENT` bytes, is of exactly one kind (one that could be read as manifest and as index is
refused: CVE-2021-41190), and each field that we use has the type that it should have. What we do not use is kept in the bytes,
which the digest names, and nowhere else: labels and annotations are words for people, and decide nothing.
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Mapping
from typing import Any, Final, TypeVar, cast

from attrs import field, frozen

from sandbox._types import Shown
from sandbox.errors import ImageError, UsageError
from sandbox.image.digest import Digest

MAX_DOCUMENT: Final = 4 << 20  # distribution-spec: registries should take manifests of at least 4 MiB, and need take no more
MAX_ENTRIES: Final = 1000  # layers of a manifest, manifests of an index
_MAX_SIZE: Final = 1 << 50
T = TypeVar("T")


class MediaType(enum.StrEnum):
    """What is told by a media type."""

    OCI_INDEX = "application/vnd.oci.image.index.v1+json"
    OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
    OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
    OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
    OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
    OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
    DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
    DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
    DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
    DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"


INDEXES: Final = frozenset({MediaType.OCI_INDEX, MediaType.DOCKER_INDEX})
MANIFESTS: Final = frozenset({MediaType.OCI_MANIFEST, MediaType.DOCKER_MANIFEST})


@frozen(repr=False)
class Platform(Shown):
    """What an image runs on; `variant` tells kinds of one architecture apart ("v7" of "arm")."""

    os: str = "linux"
    architecture: str = "amd64"
    variant: str = ""

    @classmethod
    def of_this_machine(cls) -> Platform:
        """What runs here. Raises: ImageError: images have no word for this machine."""
        machine = os.uname().machine
        if machine not in _ARCHITECTURES:
            raise ImageError(f"images have no name for the architecture {machine!r}")
        architecture, variant = _ARCHITECTURES[machine]
        return cls("linux", architecture, variant)

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read ``linux/arm64`` or ``linux/arm/v7``. Raises: UsageError."""
        parts = text.split("/")
        if not 2 <= len(parts) <= 3 or not all(part.isascii() and part.isalnum() for part in parts):
            raise UsageError(f"platform: {text!r} is not OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/amd64")
        return cls(*parts)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def fits(self, other: Platform) -> bool:
        """Whether what is built for *other* runs where this is asked for; an unnamed variant fits any."""
        same_variant = not self.variant or not other.variant or self.variant == other.variant
        return (self.os, self.architecture) == (other.os, other.architecture) and same_variant


_ARCHITECTURES: Final = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),  # arm64 has one variant, v8, which is mostly left out
    "armv7l": ("arm", "v7"),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "riscv64": ("riscv64", ""),
    "s390x": ("s390x", ""),
}


@frozen(repr=False)
class Descriptor(Shown):
    """A pointer to content: its media type, digest and size in bytes. `platform` where an index tells it."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, media_type: str, data: bytes) -> Descriptor:
        """What points to *data*."""
        return cls(media_type, Digest.of(data), len(data))

    @property
    def is_attestation(self) -> bool:
        """Whether it says something of another entry of the index (BuildKit's provenance), and is no image."""
        return dict(self.annotations).get("vnd.docker.reference.type") == "attestation-manifest"

    def to_json(self) -> dict[str, object]:
        """As it stands in a document."""
        result: dict[str, object] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.platform is not None:
            platform = {"architecture": self.platform.architecture, "os": self.platform.os}
            result["platform"] = platform | ({"variant": self.platform.variant} if self.platform.variant else {})
        if self.annotations:
            result["annotations"] = dict(self.annotations)
        return result


@frozen(repr=False)
class Index(Shown):
    """A list of manifests, one for each platform."""

    manifests: tuple[Descriptor, ...]
    media_type: str = MediaType.OCI_INDEX

    def select(self, wanted: Platform) -> Descriptor:
        """The first that runs on *wanted*. Raises: ImageError: there is none; it names those that there are."""
        images = [entry for entry in self.manifests if not entry.is_attestation]
        for entry in images:
            if entry.platform is not None and wanted.fits(entry.platform):
                return entry
        if len(images) == 1 and images[0].platform is None:  # layouts often leave it out; the configuration tells
            return images[0]
        there = ", ".join(sorted({str(entry.platform) for entry in images if entry.platform is not None})) or "none that is named"
        raise ImageError(f"the image is not built for {wanted}; there are: {there}")

    def encode(self) -> bytes:
        """The document."""
        return encode({"schemaVersion": 2, "mediaType": self.media_type, "manifests": [entry.to_json() for entry in self.manifests]})


@frozen(repr=False)
class Manifest(Shown):
    """One image: its configuration, and its layers, the lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    media_type: str = MediaType.OCI_MANIFEST
    annotations: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        """The document."""
        document: dict[str, object] = {"schemaVersion": 2, "mediaType": self.media_type, "config": self.config.to_json()}
        document["layers"] = [layer.to_json() for layer in self.layers]
        return encode(document | ({"annotations": dict(self.annotations)} if self.annotations else {}))


@frozen(repr=False)
class Healthcheck(Shown):
    """How to see whether a container is well: ``("CMD", ...)``, ``("CMD-SHELL", line)`` or ``("NONE",)``; seconds; None: the default."""

    test: tuple[str, ...]
    interval: float | None = None
    timeout: float | None = None
    start_period: float | None = None
    retries: int | None = None
    start_interval: float | None = None  # between checks while the start period lasts


@frozen(repr=False)
class History(Shown):
    """One step of an image's making."""

    created_by: str = ""
    created: str = ""
    comment: str = ""
    empty_layer: bool = False


@frozen(repr=False)
class Settings(Shown):
    """What an image says of the containers that are made of it; None: it says nothing."""

    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()  # "NAME=value"
    working_dir: str = ""
    user: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()  # "80/tcp"
    stop_signal: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    healthcheck: Healthcheck | None = None
    shell: tuple[str, ...] | None = None
    on_build: tuple[str, ...] = ()


@frozen(repr=False)
class Config(Shown):
    """The configuration of an image: what it is for, how it was made, and what its layers are when they are unpacked."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    settings: Settings = field(factory=Settings)
    history: tuple[History, ...] = ()
    created: str = ""
    author: str = ""

    def encode(self) -> bytes:
        """The document."""
        document: dict[str, object] = {"architecture": self.platform.architecture, "os": self.platform.os}
        if self.platform.variant:
            document["variant"] = self.platform.variant
        document |= {name: value for name, value in (("created", self.created), ("author", self.author)) if value}
        document["config"] = _settings_to_json(self.settings)
        document["rootfs"] = {"type": "layers", "diff_ids": [str(digest) for digest in self.diff_ids]}
        if self.history:
            document["history"] = [_history_to_json(step) for step in self.history]
        return encode(document)


def encode(document: Mapping[str, object]) -> bytes:
    """JSON as all of ours is written: the same bytes for the same content."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


# ---- Reading ----


def decode(data: bytes, *, what: str) -> dict[str, Any]:
    """Read a JSON object. Raises: ImageError: it is too large, too deep, or none."""
    if len(data) > MAX_DOCUMENT:
        raise ImageError(f"{what}: {len(data)} bytes; at most {MAX_DOCUMENT} are taken")
    try:
        document = json.loads(data.decode("utf-8"))
        if b"\\ud" in data.lower():  # half of a character, which nobody could write again
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{what}: not a JSON document ({type(error).__name__})") from None
    if not isinstance(document, dict):
        raise ImageError(f"{what}: a JSON {type(document).__name__}, not an object")
    return cast("dict[str, Any]", document)


def parse_document(data: bytes, *, media_type: str = "", what: str = "document") -> Index | Manifest:
    """Read a manifest or an index; *media_type* is what its source says that it is, or "".

    Raises: ImageError: it is neither, could be both, or says itself to be something else than its source says.
    """
    document = decode(data, what=what)
    own = _get(document, "mediaType", str, "", what)
    if media_type and own and own != media_type:
        raise ImageError(f"{what}: it came as {media_type}, and says that it is {own}")
    if "manifests" in document and ("layers" in document or "config" in document):
        raise ImageError(f"{what}: it could be read as a manifest and as an index; it is refused")
    if document.get("schemaVersion") != 2:
        raise ImageError(f"{what}: schema version {document.get('schemaVersion')!r}; only 2 is read (images pushed since 2016 have it)")
    kind = own or media_type or (MediaType.OCI_INDEX if "manifests" in document else MediaType.OCI_MANIFEST)
    if kind in INDEXES and "manifests" in document:
        return Index(_descriptors(document, "manifests", what), kind)
    if kind in MANIFESTS and "config" in document:
        config = _descriptor(document["config"], f"{what}: config")
        return Manifest(config, _descriptors(document, "layers", what), kind, _annotations(document, what))
    raise ImageError(f"{what}: {kind!r} with the fields {', '.join(sorted(document)[:8])} is neither a manifest nor an index")


def parse_config(data: bytes, *, what: str = "configuration") -> Config:
    """Read an image's configuration. Raises: ImageError."""
    document = decode(data, what=what)
    rootfs = _get(document, "rootfs", dict, {}, what)
    diff_ids = tuple(_digest(text, f"{what}: diff_ids") for text in _list(rootfs, "diff_ids", what))
    platform = Platform(
        _get(document, "os", str, "", what), _get(document, "architecture", str, "", what), _get(document, "variant", str, "", what)
    )
    return Config(
        platform=platform,
        diff_ids=diff_ids,
        settings=_settings(_get(document, "config", dict, {}, what), f"{what}: config"),
        history=tuple(_history(step, f"{what}: history") for step in _list(document, "history", what)),
        created=_get(document, "created", str, "", what),
        author=_get(document, "author", str, "", what),
    )


def _get(document: Mapping[str, Any], name: str, kind: type[T], default: T, what: str) -> T:
    value = document.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ImageError(f"{what}: {name} is a {type(value).__name__}, not a {kind.__name__}")
    return value


def _list(document: Mapping[str, Any], name: str, what: str) -> list[Any]:
    found: list[Any] = _get(document, name, list, [], what)
    if len(found) > MAX_ENTRIES:
        raise ImageError(f"{what}: {len(found)} {name}; at most {MAX_ENTRIES} are taken")
    return found


def _digest(text: object, what: str) -> Digest:
    try:
        return Digest.parse(text)
    except UsageError as error:
        raise ImageError(f"{what}: {error}") from None


def _descriptors(document: Mapping[str, Any], name: str, what: str) -> tuple[Descriptor, ...]:
    return tuple(_descriptor(entry, f"{what}: {name}") for entry in _list(document, name, what))


def _descriptor(entry: object, what: str) -> Descriptor:
    if not isinstance(entry, dict):
        raise ImageError(f"{what}: a {type(entry).__name__}, not a descriptor")
    fields = cast("dict[str, Any]", entry)
    size = _get(fields, "size", int, -1, what)
    if not 0 <= size <= _MAX_SIZE:
        raise ImageError(f"{what}: a size of {size} bytes")
    platform = _get(fields, "platform", dict, {}, what)
    return Descriptor(
        media_type=_get(fields, "mediaType", str, "", what),
        digest=_digest(fields.get("digest"), what),
        size=size,
        platform=_platform(platform, what) if platform else None,
        annotations=_annotations(fields, what),
    )


def _platform(fields: Mapping[str, Any], what: str) -> Platform:
    return Platform(*(_get(fields, name, str, "", what) for name in ("os", "architecture", "variant")))


def _annotations(fields: Mapping[str, Any], what: str) -> tuple[tuple[str, str], ...]:
    return _pairs(_get(fields, "annotations", dict, {}, what), f"{what}: annotations")


def _pairs(found: Mapping[str, Any], what: str) -> tuple[tuple[str, str], ...]:
    if len(found) > MAX_ENTRIES or not all(isinstance(value, str) for value in found.values()):
        raise ImageError(f"{what}: at most {MAX_ENTRIES} texts are taken")
    return tuple(found.items())


def _words(fields: Mapping[str, Any], name: str, what: str) -> tuple[str, ...] | None:
    """A list of texts; None where there is none."""
    if fields.get(name) is None:
        return None
    found = _list(fields, name, what)
    if not all(isinstance(word, str) and "\0" not in word for word in found):
        raise ImageError(f"{what}: {name} is not a list of texts")
    return tuple(found)


def _keys(fields: Mapping[str, Any], name: str, what: str) -> tuple[str, ...]:
    """Docker writes sets as objects with empty values."""
    found: dict[str, Any] = _get(fields, name, dict, {}, what)
    if len(found) > MAX_ENTRIES:
        raise ImageError(f"{what}: {len(found)} {name}; at most {MAX_ENTRIES} are taken")
    return tuple(found)


def _settings(fields: Mapping[str, Any], what: str) -> Settings:
    return Settings(
        entrypoint=_words(fields, "Entrypoint", what),
        cmd=_words(fields, "Cmd", what),
        env=_words(fields, "Env", what) or (),
        working_dir=_get(fields, "WorkingDir", str, "", what),
        user=_get(fields, "User", str, "", what),
        volumes=_keys(fields, "Volumes", what),
        exposed_ports=_keys(fields, "ExposedPorts", what),
        stop_signal=_get(fields, "StopSignal", str, "", what),
        labels=_pairs(_get(fields, "Labels", dict, {}, what), f"{what}: Labels"),
        healthcheck=_healthcheck(_get(fields, "Healthcheck", dict, {}, what), f"{what}: Healthcheck"),
        shell=_words(fields, "Shell", what),
        on_build=_words(fields, "OnBuild", what) or (),
    )


def _healthcheck(fields: Mapping[str, Any], what: str) -> Healthcheck | None:
    test = _words(fields, "Test", what)
    if not test:
        return None
    names = ("Interval", "Timeout", "StartPeriod", "StartInterval")  # in nanoseconds
    seconds = {name: _get(fields, name, int, 0, what) / 1e9 or None for name in names}
    retries = _get(fields, "Retries", int, 0, what) or None
    return Healthcheck(test, seconds["Interval"], seconds["Timeout"], seconds["StartPeriod"], retries, seconds["StartInterval"])


def _history(step: object, what: str) -> History:
    if not isinstance(step, dict):
        raise ImageError(f"{what}: a {type(step).__name__}, not an object")
    fields = cast("dict[str, Any]", step)
    created_by, created, comment = (_get(fields, name, str, "", what) for name in ("created_by", "created", "comment"))
    return History(created_by, created, comment, _get(fields, "empty_layer", bool, False, what))


# ---- Writing ----


def _history_to_json(step: History) -> dict[str, object]:
    words: dict[str, object] = {name: value for name in ("created", "created_by", "comment") if (value := getattr(step, name))}
    return words | ({"empty_layer": True} if step.empty_layer else {})


def _settings_to_json(settings: Settings) -> dict[str, object]:
    fields: dict[str, object] = {
        "User": settings.user,
        "ExposedPorts": {port: {} for port in settings.exposed_ports},
        "Env": list(settings.env),
        "Entrypoint": settings.entrypoint,
        "Cmd": settings.cmd,
        "Volumes": {volume: {} for volume in settings.volumes},
        "WorkingDir": settings.working_dir,
        "Labels": dict(settings.labels),
        "StopSignal": settings.stop_signal,
        "Shell": settings.shell,
        "OnBuild": list(settings.on_build),
        "Healthcheck": None if settings.healthcheck is None else _healthcheck_to_json(settings.healthcheck),
    }
    # An empty entry point is something else than none: it takes the base image's away.
    return {name: value for name, value in fields.items() if value or (name in ("Entrypoint", "Cmd") and value is not None)}


def _healthcheck_to_json(check: Healthcheck) -> dict[str, object]:
    times = {"Interval": check.interval, "Timeout": check.timeout, "StartPeriod": check.start_period, "StartInterval": check.start_interval}
    result: dict[str, object] = {"Test": list(check.test)}
    result |= {name: round(seconds * 1e9) for name, seconds in times.items() if seconds is not None}
    return result | ({"Retries": check.retries} if check.retries is not None else {})
