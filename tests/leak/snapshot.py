"""Count everything that a container could leave behind on the host, before and after.

What is counted, each as a set of lines that name the thing:

- processes and threads: those descended from this process; orphans of a launcher, wherever they went
- namespaces: those that these processes are in, hold open, or that are bound to a name
- mounts of this mount namespace, network links of this network namespace, named network namespaces
- cgroups: every directory of ours below the cgroup that we are in, in each hierarchy
- loop devices of volumes
- packet filter rules, where the tools exist and we may ask
- unix sockets that have a name, and all descriptors, of this process
- files: everything in the temporary directory, unless that is /tmp; what bears our name in /tmp, /run, /dev/shm and $XDG_RUNTIME_DIR

Other work on the machine is not ours to count: what cannot be ours by descent or by name is left out.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import attrs
from attrs import frozen

Lines = frozenset[str]
OURS = re.compile("sandbox")
PROC = Path("/proc")


@frozen
class Snapshot:
    """What there was at one moment; `left_behind` compares two."""

    processes: Lines
    threads: Lines
    namespaces: Lines
    mounts: Lines
    links: Lines
    cgroups: Lines
    loops: Lines
    rules: Lines
    unix_sockets: Lines
    fds: Lines
    files: Lines

    @classmethod
    def take(cls) -> Snapshot:
        """Look at the machine now. Blocks for a few milliseconds, or tens where packet filters are listed."""
        parents = _parents()
        family = [os.getpid(), *descendants(os.getpid(), parents)]
        pids = [*family, *orphaned_launchers(parents, family)]
        return cls(
            processes=frozenset(filter(None, map(describe, pids))),
            threads=frozenset(os.listdir("/proc/self/task")),
            namespaces=frozenset(_namespaces(pids)),
            mounts=frozenset(Path("/proc/self/mountinfo").read_text().splitlines()),
            links=frozenset([*os.listdir("/sys/class/net"), *_names("/run/netns", "")]),
            cgroups=frozenset(_cgroups()),
            loops=frozenset(_loops()),
            rules=frozenset(_rules()),
            unix_sockets=frozenset(_unix_sockets(pids)),
            fds=frozenset(_fds(os.getpid())),
            files=frozenset(_files()),
        )

    def left_behind(self, after: Snapshot) -> list[str]:
        """List what is in *after* and was not here, each line with its kind."""
        kinds = [field.name for field in attrs.fields(Snapshot)]
        return [f"{kind}: {line}" for kind in kinds for line in sorted(getattr(after, kind) - getattr(self, kind))]

    def wait_until_clean(self, patience_s: float = 1.0) -> list[str]:
        """Compare with the machine as it is now, again until nothing is left or *patience_s* has gone by; say what is left."""
        # There is no event for "all is gone": the kernel frees cgroups and namespaces at its leisure. So we look again.
        from tests.support import patience

        deadline = time.monotonic() + patience(patience_s)
        while (left := self.left_behind(Snapshot.take())) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left


def descendants(pid: int, parents: Mapping[int, int] | None = None) -> list[int]:
    """All living children of *pid* and their children, zombies too."""
    children: dict[int, list[int]] = {}
    for child, parent in (_parents() if parents is None else parents).items():
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    todo = [pid]
    while todo:
        found.extend(fresh := children.get(todo.pop(), []))
        todo.extend(fresh)
    return found


def orphaned_launchers(parents: Mapping[int, int], family: Collection[int]) -> list[int]:
    """Launchers and inits (they share its executable) whose parent is gone; not those of a stranger, who is not of the *family*, that is alive."""
    found = [pid for pid, parent in parents.items() if parent == 1 and "memfd:" in (exe := _readlink(f"/proc/{pid}/exe")) and OURS.search(exe)]
    return [pid for pid in found if (caller := _caller(pid)) in family or not (PROC / str(caller)).exists()]


def strangers_groups() -> set[str]:
    """Names of the directories that processes have which live and do not descend from this one: another run of the tests, say."""
    parents = _parents()
    owners = parents.keys() - {os.getpid(), *descendants(os.getpid(), parents)}
    return {f"sandbox-{pid}-{words[-1]}" for pid in owners if (words := describe(pid).removesuffix(" (zombie)").split())}


def _caller(launcher: int) -> int:
    """The embedding process, which is a launcher's only argument."""
    try:
        words = (PROC / str(launcher) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return 0
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0


def _parents() -> dict[int, int]:
    """The parent of each process that there is."""
    found: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb", buffering=0) as file:
                    # The name, in brackets, may contain anything; the state and the parent follow the last bracket.
                    fields = file.read().rpartition(b")")[2].split(maxsplit=2)
            except OSError:
                continue  # it ended while we looked
            found[int(entry)] = int(fields[1])
    return found


def describe(pid: int) -> str:
    """Name a process so that a recycled pid does not look like the old process; "" when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            head, _, tail = file.read().rpartition(")")
    except OSError:
        return ""
    fields = tail.split()
    return f"{head.rpartition('(')[2]} pid {pid} started {fields[19]}{' (zombie)' if fields[0] == 'Z' else ''}"


def _namespaces(pids: Iterable[int]) -> Iterator[str]:
    for pid in pids:
        for name in _listdir(f"/proc/{pid}/ns"):
            yield _readlink(f"/proc/{pid}/ns/{name}")
        for target in _fd_targets(pid):
            if re.fullmatch(r"\w+:\[\d+\]", target) and not target.startswith(("socket:", "pipe:")):
                yield target
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        if " - nsfs " in line:
            yield f"{line.split()[3]} bound at {line.split()[4]}"


def _cgroups() -> Iterator[str]:
    """Our directories below our own cgroup, in each hierarchy."""
    strangers = functools.cache(strangers_groups)  # which takes a look at every process: not where there is no group at all
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, fstype, options = line.split()[:4]
        if fstype not in ("cgroup", "cgroup2"):
            continue
        for _, controllers, path in own:
            mine = not controllers if fstype == "cgroup2" else bool(controllers) and set(controllers.split(",")) <= set(options.split(","))
            if mine:
                top = os.path.join(mount, path.lstrip("/"))
                for directory, below, _ in os.walk(top):
                    below[:] = [name for name in below if not OURS.search(name) or name.rpartition("-")[0] not in strangers()]
                    if OURS.search(directory[len(top) :]):
                        yield directory


def nested_lines(text: str) -> Iterator[str]:
    """Each line of nft's listing behind the names of the blocks that it is in."""
    around: list[str] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if line == "}":
            around.pop()
            continue
        yield " / ".join([*around, line])
        if line.partition(" #")[0].endswith("{"):
            around.append(line)


def _loops() -> Iterator[str]:
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it has just gone
            if "/_image" in (text := path.read_text()):
                yield f"{path.parts[3]} {text.strip()}"


def _rules() -> Iterator[str]:
    if os.geteuid() != 0:
        return
    has_nft = bool(shutil.which("nft"))
    if has_nft:
        # Not --json: nft 1.0.6 (Debian 12) says rubbish of a table that has an owner, or stops there.
        yield from nested_lines(_output("nft", "--stateless", "--handle", "list", "ruleset"))
    for tool in ("iptables-save", "ip6tables-save"):
        path = shutil.which(tool)
        # The one that is a face of nft has nothing to add to what nft says.
        if path and not (has_nft and os.path.basename(os.path.realpath(path)) == "xtables-nft-multi"):
            # Counters move and comments hold the time.
            yield from (f"{tool}: {line.partition(' [')[0]}" for line in _output(tool).splitlines() if not line.startswith("#"))


def _output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL).stdout


def _unix_sockets(pids: Iterable[int]) -> Iterator[str]:
    """Named sockets, abstract ones included, that these processes hold."""
    held = {target for pid in pids for target in _fd_targets(pid) if target.startswith("socket:")}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and f"socket:[{fields[6]}]" in held:
            yield fields[7]


def _fds(pid: int) -> Iterator[str]:
    for fd in _listdir(f"/proc/{pid}/fd"):
        target = _readlink(f"/proc/{pid}/fd/{fd}")
        if target and not target.startswith(f"/proc/{pid}/fd"):  # the descriptor that lists the directory
            yield f"{fd} -> {target}"


def _fd_targets(pid: int) -> list[str]:
    return [_readlink(f"/proc/{pid}/fd/{fd}") for fd in _listdir(f"/proc/{pid}/fd")]


def _files() -> Iterator[str]:
    if tempfile.gettempdir() != "/tmp":  # which everybody writes to
        for directory, folders, names in os.walk(tempfile.gettempdir()):
            yield from (os.path.join(directory, name) for name in [*folders, *names])
    for shared in ("/tmp", "/run", "/dev/shm", os.environ.get("XDG_RUNTIME_DIR", "")):
        yield from _names(shared, f"{OURS.pattern}(?!-(vm|suite)-)")  # tests/vm has its own, and may be at work beside us


def _names(directory: str, pattern: str) -> Iterator[str]:
    yield from (os.path.join(directory, name) for name in _listdir(directory) if re.search(pattern, name))


def _listdir(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []  # it ended while we looked, or is not ours to see


def _readlink(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
