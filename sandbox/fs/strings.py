"""Docker's strings for mounts, as values: ``src:/dst:ro``, ``type=volume,source=name,target=/dst``, ``/dst:size=64M``. Pure: nothing is looked up.

What is refused, with the reason in the error: ``z`` and ``Z`` (they relabel the caller's files for SELinux), mount propagation other than
private (nothing that is mounted later goes from or to a container), drivers and labels of volumes (`VolumeStore.create` makes them),
and whatever is unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from sandbox.errors import UsageError
from sandbox.fs._specs import Bind, Mount, Tmpfs, Volume

_MODES: Final = frozenset(("ro", "rw", "nocopy", "private", "rprivate"))
_OUR_WAY: Final = ("private", "rprivate")
_CONSISTENCY: Final = ("default", "consistent", "cached", "delegated")  # of file sharing on a Mac; on Linux, Docker takes them for nothing, too
_SHARING: Final = ("shared", "rshared", "slave", "rslave")
_RELABEL: Final = "z and Z relabel your files for SELinux, which this library never does; leave it out (with SELinux: chcon -t container_file_t)"
_KEYS: Final = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
_FLAGS: Final = ("readonly", "volume-nocopy", "bind-nonrecursive")
_COMMON: Final = frozenset(("source", "target", "readonly"))
_OF_TYPE: Final = {
    "bind": _COMMON | {"bind-recursive", "bind-nonrecursive", "bind-propagation", "consistency"},
    "volume": _COMMON | {"volume-subpath", "volume-nocopy", "volume-opt", "consistency"},
    "tmpfs": frozenset(("target", "tmpfs-size", "tmpfs-mode", "consistency")),
}
_ALL_KEYS: Final = frozenset(("type", *_KEYS, *(key for keys in _OF_TYPE.values() for key in keys)))
_MADE_BEFORE: Final = ("volume-driver", "volume-label")
_TRUE: Final = frozenset(("", "true", "1"))
_FALSE: Final = frozenset(("false", "0"))
_OCTAL: Final = re.compile(r"[0-7]{1,7}", re.ASCII)
_COUNT: Final = re.compile(r"[0-9]{1,10}", re.ASCII)


def to_mount(value: Mount | str) -> Mount:
    """A mount as it is, or what one of Docker's strings says: that of ``--mount`` when it begins with one of its words, else that of ``--volume``.

    Raises: UsageError.
    """
    if not isinstance(value, str):
        return value
    first = value.lstrip('"').partition(",")[0].lower().partition("=")
    is_words = first[0] in _ALL_KEYS and (bool(first[1]) or first[0] in ("ro", *_FLAGS))
    try:
        return parse_mount(value) if is_words else parse_volume(value)
    except UsageError as error:
        raise UsageError(f"mounts: {value!r}: {error}") from None


def parse_volume(text: str) -> Mount:
    """``SRC:DST[:OPTIONS]``: a source with a slash is a path, one without names a volume. ``DST`` alone: an anonymous volume.

    OPTIONS, with commas: ro, rw, nocopy (volumes), private. Raises: UsageError.
    """
    parts = text.split(":")
    if len(parts) == 1:
        return Volume(None, _absolute(text))
    if len(parts) > 3 or not all(parts):
        raise UsageError("this is not SRC:DST, SRC:DST:OPTIONS or DST (a path with a colon: say type=bind,source=...,target=...)")
    source, target, *rest = parts
    flags = rest[0].split(",") if rest else []
    _check_modes(flags)
    read_only, nocopy = "ro" in flags, "nocopy" in flags
    if not _is_path(source):
        return Volume(source, _absolute(target), read_only=read_only, nocopy=nocopy)
    if nocopy:
        raise UsageError("nocopy is for volumes: nothing is ever copied into a directory of yours")
    return Bind(source, _absolute(target), read_only=read_only)


def _is_path(source: str) -> bool:
    return "/" in source or source in (".", "..")


def _absolute(target: str) -> str:
    if target in _MODES:
        raise UsageError(f"{target!r} is no place; say SRC:DST:{target}")
    return target


def _check_modes(flags: list[str]) -> None:
    for flag in flags:
        if flag in ("z", "Z"):
            raise UsageError(_RELABEL)
        _check_propagation(flag)
        if flag not in _MODES and flag not in _CONSISTENCY[1:]:
            raise UsageError(f"{flag!r} is unknown; there are ro, rw, nocopy")
    if len(set(flags)) < len(flags) or {"ro", "rw"} <= {*flags} or {*_OUR_WAY} <= {*flags} or len({*_CONSISTENCY} & {*flags}) > 1:
        raise UsageError(f"{','.join(flags)!r} says the same thing twice; keep one")


def _check_propagation(word: str) -> None:
    if word in _SHARING:
        raise UsageError(f"{word!r}: no mount goes from a container to the host, or the other way, while it lives; leave it out")


# --- type=...,source=...,target=... -------------------------------------------------------------------------------------


def parse_mount(text: str) -> Mount:
    """``type=bind,source=S,target=T[,readonly]``, ``type=volume,...``, ``type=tmpfs,...``; a field with a comma stands in double quotes, as in CSV.

    Raises: UsageError.
    """
    words = _words(text)
    kind = words.pop("type", "volume").lower()
    allowed = _OF_TYPE.get(kind)
    if allowed is None:
        raise UsageError(f"type {kind!r} is not offered; choose bind, volume or tmpfs")
    if made_before := [word for word in _MADE_BEFORE if word in words]:
        raise UsageError(f"{made_before[0]}: a volume is made with its labels and options before; use sandbox volume create, or VolumeStore.create")
    if unknown := sorted(words.keys() - allowed):
        raise UsageError(f"{unknown[0]!r} is not an option of type={kind}; there are {', '.join(sorted(allowed))}")
    if words.get("consistency", "default") not in _CONSISTENCY:
        raise UsageError(f"consistency: {words['consistency']!r} is unknown; there are {', '.join(_CONSISTENCY)}, and none of them does anything")
    needed = ("source", "target") if kind == "bind" else ("target",)
    if missing := [word for word in needed if not words.get(word)]:
        raise UsageError(f"{missing[0]}= is missing")
    if kind == "tmpfs":
        return _tmpfs(words["target"], {key.removeprefix("tmpfs-"): value for key, value in words.items() if key.startswith("tmpfs-")})
    return _bind(words) if kind == "bind" else _volume(words)


def _bind(words: Mapping[str, str]) -> Bind:
    recursive = words.get("bind-recursive", "enabled")
    if recursive not in ("enabled", "disabled", "readonly"):
        raise UsageError("bind-recursive is 'enabled', 'disabled' or 'readonly': read-only holds for all that is mounted below")
    read_only = _switch(words, "readonly")
    if recursive == "readonly" and not read_only:
        raise UsageError("bind-recursive=readonly goes with readonly; give both")
    propagation = words.get("bind-propagation", "rprivate")
    _check_propagation(propagation)
    if propagation not in _OUR_WAY:
        raise UsageError(f"bind-propagation: {propagation!r} is unknown; it is always private")
    is_flat = recursive == "disabled" or _switch(words, "bind-nonrecursive")
    return Bind(words["source"], words["target"], read_only=read_only, recursive=not is_flat)


def _volume(words: Mapping[str, str]) -> Volume:
    name = words.get("source") or None
    more: dict[str, Any] = {"read_only": _switch(words, "readonly"), "nocopy": _switch(words, "volume-nocopy")}
    if "volume-opt" in words:
        more["size"] = _size_option(words["volume-opt"])
    return Volume(name, words["target"], subpath=words.get("volume-subpath", ""), **more)


def _size_option(option: str) -> str:
    name, _, value = option.partition("=")
    if name != "size" or not value:
        raise UsageError(f"volume-opt: {option!r} is not offered; there is size=SIZE")
    return value


def _words(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in csv_fields(text):
        key, equals, value = word.partition("=")
        key = _KEYS.get(key.lower(), key.lower())
        if not key or (not equals and key not in _FLAGS):
            raise UsageError(f"{word!r} is not KEY=VALUE")
        if key in found:
            raise UsageError(f"{key} is said twice; keep one")
        found[key] = value
    return found


def csv_fields(text: str) -> Iterator[str]:
    """The fields of one line of CSV (RFC 4180): a field in double quotes may hold commas, and quotes that are doubled."""
    at = 0
    while at <= len(text):
        if text.startswith('"', at):
            end = at + 1
            while (end := text.find('"', end)) >= 0 and text.startswith('""', end):
                end += 2
            if end < 0 or text[end + 1 : end + 2] not in ("", ","):
                raise UsageError("a field that begins with a double quote ends with one")
            yield text[at + 1 : end].replace('""', '"')
            at = end + 2
        else:
            field, _, _ = text[at:].partition(",")
            if '"' in field:
                raise UsageError(f"{field!r}: put the whole of a field into double quotes, and double those in it")
            yield field
            at += len(field) + 1


def _switch(words: Mapping[str, str], name: str) -> bool:
    value = words.get(name, "false")
    if value not in _TRUE and value not in _FALSE:
        raise UsageError(f"{name}={value!r} is neither true nor false")
    return value in _TRUE


# --- DST:size=... --------------------------------------------------------------------------------------------------------


def parse_tmpfs(text: str) -> Tmpfs:
    """``DST[:size=64M,mode=1777,nr_inodes=1000]``; what else Docker takes holds always (rw, nosuid, nodev). Raises: UsageError."""
    target, _, words = text.partition(":")
    options: dict[str, str] = {}
    for word in filter(None, words.split(",")):
        key, _, value = word.partition("=")
        if key in ("size", "mode", "nr_inodes") and value:
            options[key] = value
        elif word not in ("rw", "nosuid", "nodev"):
            raise UsageError(f"{word!r} is unknown; there are size=, mode= and nr_inodes=")
    return _tmpfs(target, options)


def _tmpfs(target: str, words: Mapping[str, str]) -> Tmpfs:
    options: dict[str, Any] = {}
    if "size" in words:
        options["size"] = words["size"]
    if "mode" in words:
        if not _OCTAL.fullmatch(words["mode"]):
            raise UsageError(f"mode {words['mode']!r} is not an octal number")
        options["mode"] = int(words["mode"], 8)
    if "nr_inodes" in words:
        if not _COUNT.fullmatch(words["nr_inodes"]):
            raise UsageError(f"nr_inodes: {words['nr_inodes']!r} is not a whole number")
        options["inodes"] = int(words["nr_inodes"])
    return Tmpfs(target, **options)
