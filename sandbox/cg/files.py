"""Reading, writing and removing in cgroupfs, with the kernel's refusals put into words."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from functools import lru_cache

from sandbox.cg.hosts import IN_A_CONTAINER
from sandbox.cg.limits import Write
from sandbox.errors import SandboxError, SetupError, UnsupportedError, UsageError

_HINTS = {
    ("cpuset", errno.EINVAL): "name CPUs that the parent group has",
    ("cpuset", errno.EACCES): "the CPUs are not among those of the parent group",
    ("cpuset", errno.ERANGE): "name CPUs that this host has",
    ("cpu", errno.EINVAL): "the quota is beyond what the kernel or the parent group allows",
    ("memory", errno.EBUSY): "the group uses more than that already, and it cannot be reclaimed",
    ("memory", errno.EINVAL): "memory plus swap may not be below memory, nor the limit of a root group be set",
    ("io", errno.ENODEV): "name a whole disk that this host has, not a partition",
    ("io", errno.EOPNOTSUPP): "this disk has no such policy",
    ("devices", errno.EPERM): "the parent group does not allow this device",
}
#: With what mkdir fails where groups have run out.
NO_MORE = {
    errno.EAGAIN: "cgroup.max.descendants or cgroup.max.depth of a group above is reached",
    errno.ENOSPC: "the kernel has no room for another (65,535 groups of memory: /proc/cgroups tells how many there are)",
}
_NAME = re.compile(r"[0-9A-Za-z_+@:][-0-9A-Za-z_+@:.]{0,199}")
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_DELEGATE = "have a cgroup delegated (under systemd: sandbox.cg.delegate(), or systemd-run --user --scope -p Delegate=yes ...), or run as root"


def read_bytes(path: str | bytes, *, dir_fd: int | None = None) -> bytes:
    """Read a small control file (up to 64 KiB)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)


def read_all(path: str) -> str:
    """Read a control file of any length."""
    with open(path, "rb", buffering=0) as file:
        return os.fsdecode(file.readall() or b"")


def read_or_none(path: str) -> str | None:
    """Read a control file; None when this kernel does not have it, or does not let it be read here."""
    try:
        return read_all(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EACCES, errno.ENODEV, errno.EINVAL):
            return None
        raise


def write_bytes(path: str | bytes, value: bytes, *, dir_fd: int | None = None) -> None:
    """Write a control file in one write(2), as the kernel wants it; never creates a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


def refusal(action: str, error: OSError, *, controller: str = "") -> SandboxError:
    """Turn the kernel's *error* about *action* into ours."""
    number = error.errno or 0
    hint = _HINTS.get((controller, number), "")
    if number in _REFUSED and not hint:
        remedy = f"mount it writable; {IN_A_CONTAINER}" if number == errno.EROFS else _DELEGATE
        return UnsupportedError(f"{action}: {error.strerror}", feature=f"cgroup:{controller}" if controller else "cgroup", remedy=remedy)
    return SetupError(action, number, step="cgroup", hint=hint)


def not_made(group: str, error: OSError) -> SandboxError:
    """Turn the kernel's *error* about making *group* into ours."""
    if (hint := NO_MORE.get(error.errno or 0)) is not None:
        return SetupError(f"make the control group {group}", error.errno or 0, step="cgroup", hint=hint)
    return refusal(f"make the control group {group}", error)


def apply(directory: str, write: Write, *, dir_fd: int | None = None) -> None:
    """Carry out *write* in *directory* (relative to *dir_fd* if that is given).

    Raises: UnsupportedError: the kernel has no such file. SetupError: it refused the value.
    """
    path = f"{directory}/{write.file}"
    try:
        value = read_bytes(f"{directory}/../{write.file}", dir_fd=dir_fd) if write.value is None else write.value.encode()
        write_bytes(path, value, dir_fd=dir_fd)
    except FileNotFoundError:
        if write.instead is not None:
            apply(directory, write.instead, dir_fd=dir_fd)
        elif not write.optional:
            raise UnsupportedError(
                f"this kernel has no file {write.file} (looked for {path})",
                feature=f"cgroup:{write.file}",
                remedy="leave the limit out, or boot a kernel that was built with it",
            ) from None
    except OSError as error:
        shown = "a copy of the parent's" if write.value is None else write.value
        raise refusal(f"write {shown!r} to {path}", error, controller=write.controller) from error


@lru_cache(maxsize=256)
def existing(directory: str, write: Write) -> Write | None:
    """Give what `apply` would write in a group like *directory* (not a root, which has no limits); None: nothing. Remembered."""
    if os.path.exists(f"{directory}/{write.file}"):
        return write
    return existing(directory, write.instead) if write.instead is not None else None


def make_directory(path: str) -> None:
    """Make one group.

    Raises: UsageError: the name is taken. UnsupportedError: we may not. SetupError: anything else.
    """
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        raise UsageError(f"the control group {path} exists already; choose another name") from None
    except OSError as error:
        raise not_made(path, error) from error


def check_name(name: str) -> str:
    """Check the name of a group: one path component that no control file and no option could be taken for."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise UsageError(f"cgroup: {name!r} is not a name; use letters, digits and _ - + @ : . (200 at most, not first - or .)")
    return name


def subgroups(directory: str) -> Iterator[str]:
    """Give every group below *directory*, the deepest first; what vanishes meanwhile is left out."""
    try:
        with os.scandir(directory) as entries:
            names = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for name in names:
        yield from subgroups(name)
        yield name


def pids_in(directory: str, *, recursive: bool = True) -> set[int]:
    """Give the processes of a group, with *recursive* also those of the groups below it."""
    result: set[int] = set()
    for place in [*(subgroups(directory) if recursive else ()), directory]:
        try:
            result.update(map(int, read_all(f"{place}/cgroup.procs").split()))
        except (FileNotFoundError, ProcessLookupError):  # ENODEV/ENOENT: removed under our eyes
            continue
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
    result.discard(0)  # a process of a pid namespace that is not ours to see
    return result


def remove_directory(name: str | bytes, *, dir_fd: int | None = None, patience_s: float = 1.0) -> None:
    """rmdir one group. One that is gone is fine.

    The last process may be reported as ended an instant before the kernel takes it off the group's list (EBUSY), so try
    again for *patience_s*. Raises: OSError: EBUSY: it has processes or groups.
    """
    deadline = 0.0
    pause = 0.00005
    while True:
        try:
            os.rmdir(name, dir_fd=dir_fd)
        except FileNotFoundError:
            return
        except OSError as error:
            now = time.monotonic()
            deadline = deadline or now + patience_s
            if error.errno != errno.EBUSY or now >= deadline:
                raise
            time.sleep(pause)
            pause = min(pause * 2, 0.01)
        else:
            return


def remove_tree(directory: str, *, patience_s: float = 1.0) -> None:
    """Remove a group and all groups below it; their processes must be gone.

    Raises: SetupError: EBUSY: some are still there.
    """
    for place in [*subgroups(directory), directory]:
        try:
            remove_directory(place, patience_s=patience_s)
        except OSError as error:
            raise SetupError(f"remove the control group {place}", error.errno or 0, step="cgroup", hint=_who(place)) from error


def _who(directory: str) -> str:
    try:
        pids = sorted(pids_in(directory))
    except OSError:  # only words are lost
        return ""
    return f"processes in it: {pids[:10]}" if pids else ""


def parse_flat(text: str) -> dict[str, int]:
    """Parse lines of ``name number``; others are skipped."""
    result: dict[str, int] = {}
    for line in text.splitlines():
        name, _, number = line.rpartition(" ")
        if name and number.isdecimal():
            result[name] = int(number)
    return result


def parse_number(text: str) -> int | None:
    """Parse a number; ``max`` and v1's "unlimited" (-1) are None."""
    word = text.strip()
    return int(word) if word.isdecimal() else None
