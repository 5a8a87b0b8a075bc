"""What the host view shows: found by looking at the host, kept as a plain value until /etc changes.

Rule: a file of /etc is shown only when it is in the table below **and** everybody on the host may read it. Small files
are copied by value (one operation), large ones and directories are bound (four).
"""

from __future__ import annotations

import os
import stat
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final

from attrs import frozen

_PROGRAMS: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")

# Below /etc. Never a directory that may hold keys: /etc/ssl/private and /etc/pki/tls/private stay out.
_ETC: Final = (
    "alternatives",  # Debian: java, awk, cc, vi ... are links through it
    "ca-certificates/extracted",  # Arch
    "crypto-policies/back-ends",  # Fedora: OpenSSL's configuration includes it
    "debian_version",
    "java",
    "java-*",  # Debian: the JVM's java.security and module options
    "ld.so.cache",
    "ld.so.conf",  # gcc's linker looks for libraries of libraries with these
    "ld.so.conf.d",
    "ld-musl-*.path",
    "localtime",
    "mime.types",
    "os-release",
    "pki/ca-trust/extracted",  # Fedora
    "pki/tls/certs",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "timezone",
)
# Above it a file is bound: the plan travels in one message of 64 kB.
_COPY_LIMIT: Final = 16384


@frozen(cache_hash=True)
class HostFiles:
    """*trees* and *binds* are absolute paths to bind; *links* are (path, target); *files* are (path, content)."""

    trees: tuple[str, ...]
    binds: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, bytes], ...]
    throttles: tuple[str, ...] = ()
    has_mqueue: bool = True


def host_trees() -> tuple[str, ...]:
    """List the trees of the host that a view of it shows."""
    return host_files().trees


def host_files() -> HostFiles:
    """Look at the host, again only when a name came to or went from /etc: package managers and ldconfig rename into place."""
    try:
        changed = os.stat("/etc").st_mtime_ns
    except OSError:  # a host without /etc has programs all the same
        changed = 0
    return _look(changed)


@lru_cache(maxsize=1)
def _look(_changed: int) -> HostFiles:
    trees = tuple(path for path in _PROGRAMS if os.path.isdir(path) and not os.path.islink(path))
    links = [(path, os.readlink(path)) for path in _PROGRAMS if os.path.islink(path) and os.path.isdir(path)]
    binds: list[str] = []
    files: list[tuple[str, bytes]] = []
    for path in _etc_paths():
        _classify(path, trees=trees, binds=binds, links=links, files=files)
    return HostFiles(trees, tuple(binds), tuple(links), tuple(files), _throttles(), _has_filesystem(b"mqueue"))


def _etc_paths() -> list[str]:
    names = sorted(os.listdir("/etc")) if os.path.isdir("/etc") else []
    found: list[str] = []
    for pattern in _ETC:
        matches = [name for name in names if fnmatchcase(name, pattern)] if "*" in pattern else [pattern]
        found += [f"/etc/{match}" for match in matches]
    return found


def _classify(path: str, *, trees: tuple[str, ...], binds: list[str], links: list[tuple[str, str]], files: list[tuple[str, bytes]]) -> None:
    """Put *path* where it belongs; what is missing, or not for everybody, is left out."""
    real = os.path.realpath(path)
    try:
        status = os.stat(real)
    except OSError:
        return
    if os.path.islink(path) and any(real.startswith(f"{tree}/") for tree in trees):
        links.append((path, real))
    elif stat.S_ISDIR(status.st_mode) and status.st_mode & 0o005 == 0o005:
        binds.append(path)
    elif stat.S_ISREG(status.st_mode) and status.st_mode & 0o004:
        if status.st_size > _COPY_LIMIT:
            binds.append(path)
            return
        with open(real, "rb") as file:
            files.append((path, file.read(_COPY_LIMIT)))


def _throttles() -> tuple[str, ...]:
    base = "/sys/devices/system/cpu"
    try:
        names = sorted(os.listdir(base))
    except OSError:
        return ()
    paths = (f"{base}/{name}/thermal_throttle" for name in names if name[:3] == "cpu" and name[3:].isdecimal())
    return tuple(path for path in paths if os.path.isdir(path))


def _has_filesystem(name: bytes) -> bool:
    try:
        with open("/proc/filesystems", "rb") as file:
            return name in file.read().split()
    except OSError:
        return False


@lru_cache(maxsize=8)
def submounts(tree: str) -> tuple[str, ...]:
    """List the mount points directly below *tree*, from mountinfo, once per process: an overlay does not show them."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        points = sorted({_unescape(line.split(" ", 5)[4]) for line in file})
    nearest: list[str] = []
    for point in points:
        if point.startswith(f"{tree}/") and not any(point.startswith(f"{above}/") for above in nearest):
            nearest.append(point)
    return tuple(nearest)


def _unescape(field: str) -> str:
    # proc(5): blank, tab, newline and backslash are octal.
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, char)
    return field
