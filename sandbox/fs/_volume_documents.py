"""What is written down of a volume: its name, labels and options, as a value and as a document. Pure.

The document is written once, before the volume comes into being, and never changed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from attrs import field, frozen

from sandbox._types import to_text
from sandbox.errors import UsageError
from sandbox.fs._specs import to_volume_name, to_volume_size

MAX_DOCUMENT: Final = 1 << 16
_VERSION: Final = 1
_ANONYMOUS: Final = re.compile(r"[0-9a-f]{64}")


def to_labels(value: Mapping[str, str] | Iterable[tuple[str, str]], *, what: str = "labels") -> dict[str, str]:
    """Check labels (or options): names that are not empty, and texts. Raises: UsageError."""
    pairs = cast("Iterable[tuple[object, object]]", value.items() if isinstance(value, Mapping) else value)
    found: dict[str, str] = {}
    for name, text in pairs:
        if not isinstance(name, str) or not isinstance(text, str) or not name.strip() or "=" in name:
            raise UsageError(f"{what}: {name!r}: {text!r} is not a name without '=' and a text")
        to_text(name + text, what=what)
        found[name] = text
    return found


def to_options(options: Mapping[str, str]) -> dict[str, str]:
    """Check the options of a volume; a size becomes its number of bytes. Raises: UsageError."""
    checked = to_labels(options, what="options")
    if unknown := sorted(checked.keys() - {"size"}):
        raise UsageError(f"options: {unknown[0]!r} is not an option of a volume; there is size=")
    return {name: str(to_volume_size(text)) for name, text in checked.items()}


def size_of(options: Mapping[str, str]) -> int | None:
    """The bytes that `to_options` put there."""
    return int(options["size"]) if "size" in options else None


@frozen
class VolumeInfo:
    """One volume as its store knows it. *mountpoint*: the directory of the host that holds its files, or, of one with a
    size, the file that its file system is in; *created*: seconds since 1970.
    """

    name: str
    mountpoint: str
    created: int = 0
    labels: Mapping[str, str] = field(factory=dict[str, str])
    options: Mapping[str, str] = field(factory=dict[str, str])

    @property
    def is_anonymous(self) -> bool:
        """Whether nobody gave it a name: Docker too knows them by their 64 digits."""
        return _ANONYMOUS.fullmatch(self.name) is not None

    @property
    def size(self) -> int | None:
        """The bytes of its file system, where it has one of its own; None: only its disk limits it."""
        return size_of(self.options)

    def inspect(self) -> dict[str, Any]:
        """The same by Docker's names of the fields, ready for JSON."""
        return {
            "CreatedAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.created)),
            "Driver": "local",
            "Labels": dict(self.labels),
            "Mountpoint": self.mountpoint,
            "Name": self.name,
            "Options": dict(self.options),
            "Scope": "local",
        }

    def has_label(self, wanted: str) -> bool:
        """Whether it has the label ``NAME``, or ``NAME=VALUE``."""
        name, equals, value = wanted.partition("=")
        return name in self.labels and (not equals or self.labels[name] == value)


def encode(info: VolumeInfo) -> bytes:
    """The document of *info*. Raises: UsageError: its labels are too long."""
    import json  # needed by few

    document = {"version": _VERSION, "name": info.name, "created": info.created, "labels": dict(info.labels), "options": dict(info.options)}
    raw = json.dumps(document, sort_keys=True).encode()
    if len(raw) > MAX_DOCUMENT:
        raise UsageError(f"labels: {len(raw)} bytes in all are too much; keep within {MAX_DOCUMENT}")
    return raw


def decode(raw: bytes) -> VolumeInfo:
    """Read a document, which does not say where the files are. Raises: ValueError: it is none."""
    import json  # needed by few

    document = json.loads(raw)
    found = cast("dict[str, Any]", document if isinstance(document, dict) else {})
    if found.get("version") != _VERSION:
        raise ValueError(f"of version {found.get('version')!r}")
    created, labels, options = found.get("created"), found.get("labels"), found.get("options")
    if not isinstance(created, int) or not 0 <= created < 1 << 37 or not isinstance(labels, dict) or not isinstance(options, dict):
        raise ValueError("a field is missing")
    return VolumeInfo(to_volume_name(found.get("name", "")), "", created, to_labels(labels), to_options(options))  # pyright: ignore[reportUnknownArgumentType]
