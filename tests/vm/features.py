"""Try each feature on this host, one after the other, and print a JSON object: feature -> what came of it.

Run as a program (``python -m tests.vm.features [FEATURE...]``, all without). Each entry is a real container that runs a real program and is asked for the feature;
"works", "degraded: ..." (with ``strict=False``, what is left out) or "refused: ..." with the message as a user would see it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import sandbox
from sandbox import Bind, Container, Scratch, Security, Status, Tmpfs
from sandbox.cg import Cgroup, Limits, Mode, detect
from sandbox.errors import SandboxError

Try = Callable[[], object]  # a str: what is missing of it


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def _run(argv: list[str], **options: Any) -> sandbox.Result:
    result = sandbox.run(argv, **options)
    _expect(result.ok, f"{argv}: {result.status} {result.stderr!r}")
    return result


def _echo() -> None:
    _expect(_run(["echo", "hi"]).stdout == b"hi\n", "no output")


def _memory() -> None:
    hungry = "b = bytearray(96 << 20); b[::4096] = b[::4096]"
    result = sandbox.run(["python3", "-c", hungry], memory="48M", timeout=60.0)
    _expect(result.status is Status.MEMORY_LIMIT, f"{result.status}")


def _pids() -> None:
    result = sandbox.run(["sh", "-c", "sleep 0.2 & sleep 0.2 & sleep 0.2 & sleep 0.2 & wait"], pids=3, timeout=60.0)
    _expect(not result.ok or b"fork" in result.stderr, f"five processes under a limit of three: {result}")


def _cpus() -> None:
    result = sandbox.run(["sh", "-c", "while :; do :; done"], cpus=0.25, timeout=1.0)
    _expect(result.status is Status.TIMEOUT and result.cpu_time < 0.6, f"{result}")


def _limit(**limits: Any) -> Try:
    return lambda: _run(["true"], **limits)


def _accounting() -> str | None:
    result = _run(["true"], memory="64M")
    missing = [name for name in ("cpu_time", "memory_peak", "pids_peak") if getattr(result, name) is None]
    if missing == ["memory_peak", "pids_peak"] and detect().mode is Mode.V2 and not list(Path("/sys/fs/cgroup").rglob("memory.peak")):
        return "None: this kernel has neither memory.peak (Linux 5.19) nor pids.peak (6.1)"
    _expect(not missing, f"not told: {', '.join(missing)}")
    return None


def _run_limit() -> None:
    with Container(memory="128M") as c:
        result = c.exec(["python3", "-c", "bytearray(96 << 20)"], memory="32M", timeout=60.0)
        _expect(result.status is Status.MEMORY_LIMIT, f"{result.status}")


def _pause() -> None:
    with Container(memory="64M") as c:
        c.pause()
        c.resume()
        _expect(c.exec(["true"]).ok, "does not go on")


def _group() -> None:
    with Cgroup(f"features-{os.getpid()}", Limits(memory="100M")):
        pass


def _in_directory(work: Callable[[Path], None]) -> Try:
    def attempt() -> None:
        with tempfile.TemporaryDirectory() as directory:
            os.chmod(directory, 0o755)
            work(Path(directory))

    return attempt


def _read_only_bind(path: Path) -> None:
    (path / "file").write_text("x")
    _expect(_run(["cat", "/mnt/file"], mounts=[Bind(str(path), "/mnt", read_only=True)]).stdout == b"x", "not there")


def _writable_bind(path: Path) -> None:
    with Container(mounts=[Bind(str(path), "/mnt")], user=0) as c:
        _expect(c.exec(["sh", "-c", "echo y > /mnt/new"]).ok, "cannot write")
    _expect((path / "new").stat().st_uid == os.geteuid(), "owned by another")


def _root_directory(path: Path) -> None:
    for name in ("bin", "proc", "dev", "tmp"):
        (path / name).mkdir()
    (path / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (path / "bin/busybox").chmod(0o755)
    with Container(str(path)) as c:
        _expect(c.exec(["/bin/busybox", "sh", "-c", "echo z > /new"]).ok, "cannot write to the layer")
    _expect(not (path / "new").exists(), "the directory itself was written to")


def _disk_scratch(path: Path) -> None:
    with Container(scratch=Scratch(disk=str(path))) as c:
        _expect(c.exec(["true"]).ok, "does not run")


def _ids() -> None:
    with Container(user=0, subids=True) as c:
        count = sum(int(line.split()[2]) for line in c.exec(["cat", "/proc/self/uid_map"]).stdout.splitlines())
    _expect(count == 65536, f"{count} ids")


def _time() -> None:
    with Container(time_offsets=(1000.0, 1000.0)) as c:
        _expect(c.exec(["true"]).ok, "does not run")


def _landlock() -> None:
    with Container(security=Security(landlock=True)) as c:
        _expect(c.exec(["true"]).ok, "does not run")


def _nesting() -> None:
    with Container(security=Security(nesting=True)) as c:
        done = c.exec(["unshare", "--user", "--map-root-user", "--mount", "true"])
        _expect(done.ok, f"{done.stderr!r}")


def _tty() -> None:
    with Container() as c, c.popen(["tty"], tty=True) as p:
        _expect(p.wait().ok, "no terminal")


FEATURES: Final[dict[str, Try]] = {
    "run(['echo', 'hi'])": _echo,
    "memory=": _memory,
    "swap=": _limit(memory="64M", swap=0),
    "pids=": _pids,
    "cpus=": _cpus,
    "cpu_weight=": _limit(cpu_weight=50),
    "cpuset=": _limit(cpuset="0"),
    "io_weight=": _limit(io_weight=50),
    "hugetlb=": _limit(hugetlb={"2MB": "2M"}),
    "devices=": _limit(devices=["c 1:3 rwm"]),
    "limits of one run": _run_limit,
    "memory_peak, pids_peak": _accounting,
    "pause()": _pause,
    "Cgroup(...)": _group,
    "subids=True": _ids,
    "Bind, read-only": _in_directory(_read_only_bind),
    "Bind, writable": _in_directory(_writable_bind),
    "Tmpfs": lambda: _run(["sh", "-c", "echo > /mnt/x"], mounts=[Tmpfs("/mnt", size="1M")]),
    "a directory as root, overlay": _in_directory(_root_directory),
    "Scratch(disk=)": _in_directory(_disk_scratch),
    "net='host'": lambda: _run(["true"], net="host"),
    "time_offsets=": _time,
    "landlock=True": _landlock,
    "Security(nesting=True)": _nesting,
    "tty": _tty,
}


def outcome(attempt: Try) -> str:
    """What comes of it, in one line."""
    try:
        missing = attempt()
    except SandboxError as error:
        return f"refused: {' '.join(str(error).split())}"
    except AssertionError as error:
        return f"FAILS: {error}"
    return f"degraded: {missing}" if isinstance(missing, str) else "works"


def main(names: Sequence[str]) -> int:
    """Print what works; 1 when something neither works nor is refused by one of our errors."""
    found = {name: outcome(FEATURES[name]) for name in names or FEATURES}
    kernel = re.sub(r"[^\d.].*", "", platform.release())
    json.dump({"kernel": kernel, "uid": os.geteuid(), "features": found}, sys.stdout, indent=1)
    print()
    return any(text.startswith("FAILS") for text in found.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
