"""Archives of images for tests: right ones, and whatever else a stranger may send."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

from sandbox.image import Config, Descriptor, Digest, Index, Manifest, MediaType, Platform
from tests.images import Layer, layer

CONFIG_TYPE = MediaType.OCI_CONFIG
Entry = tuple[str, bytes | tarfile.TarInfo]


def member(name: str, kind: bytes, target: str = "", size: int = 0) -> tarfile.TarInfo:
    """A member that is no plain file."""
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size = kind, target, size
    return found


def archive(entries: Iterable[Entry]) -> bytes:
    """A tar of files by name; a `TarInfo` stands for itself."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in entries:
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def config_of(parts: Iterable[Layer], platform: Platform | None = None) -> bytes:
    """The configuration of an image of *parts*."""
    return Config(platform or Platform.of_this_machine(), tuple(part.diff_id for part in parts)).encode()


def docker_entries(parts: list[Layer], names: list[str] | None = None, **changes: object) -> list[Entry]:
    """The files of an archive as Docker before 25 writes it; *changes* are made to its `manifest.json`."""
    config = config_of(parts)
    files = [(f"{number}/layer.tar", part.tar) for number, part in enumerate(parts)]
    image = {"Config": f"{Digest.of(config).hex}.json", "RepoTags": names, "Layers": [name for name, _ in files]} | changes
    return [(f"{Digest.of(config).hex}.json", config), *files, ("manifest.json", json.dumps([image]).encode())]


def manifest_of(parts: list[Layer], config: bytes) -> bytes:
    """The manifest of an image."""
    return Manifest(Descriptor.of(CONFIG_TYPE, config), tuple(part.descriptor for part in parts)).encode()


def blob(data: bytes) -> Entry:
    """A blob in its place."""
    return f"blobs/sha256/{Digest.of(data).hex}", data


def layout_entries(parts: list[Layer], *annotations: dict[str, str]) -> list[Entry]:
    """The files of a layout with one image, and an entry in its index for each of *annotations*."""
    config = config_of(parts)
    manifest = manifest_of(parts, config)
    pointer = Descriptor.of(MediaType.OCI_MANIFEST, manifest)
    index = Index(tuple(Descriptor(pointer.media_type, pointer.digest, pointer.size, None, tuple(some.items())) for some in annotations))
    return [*head(index.encode()), blob(manifest), blob(config), *(blob(part.blob) for part in parts)]


def head(index: bytes) -> list[Entry]:
    """What a layout begins with."""
    return [("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'), ("index.json", index)]


def write_directory(path: Path, entries: Iterable[Entry]) -> Path:
    """The same files in a directory."""
    for name, content in entries:
        assert isinstance(content, bytes)
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def two_layers(word: str = "lower") -> list[Layer]:
    """Layers to make an image of."""
    return [layer({"etc/": b"", "etc/word": word.encode()}), layer({"etc/": b"", "etc/other": b"upper"})]
