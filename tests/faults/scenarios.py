"""What is done while something fails: containers from their creation to their end."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from sandbox import PIPE, Bind, Container, Scratch, Tmpfs


def plain() -> None:
    """One program in the default container."""
    with Container() as c:
        c.exec(["true"]).check()


def limited() -> None:
    """Limits, for the container and for a run, and mounts; two programs, and a file."""
    limits = {"memory": "64M", "pids": 32} if os.geteuid() == 0 else {}
    with Container(**limits, mounts=[Bind("/usr/lib", "/data", read_only=True), Tmpfs("/tmp", size="1M")], hostname="box") as c:  # type: ignore[arg-type]
        c.exec(["true"]).check()
        c.write_bytes("/tmp/file", b"text")
        assert c.exec(["cat", "/tmp/file"], **({"memory": "32M"} if limits else {})).stdout == b"text"  # type: ignore[arg-type]


def beside() -> None:
    """Programs side by side, one with a terminal, one that leaves children behind."""
    with Container() as c:
        cat = c.popen(["cat"], stdin=PIPE, stdout=PIPE)
        try:
            c.exec(["sh", "-c", "sleep 60 & exit 0"]).check()
            c.exec(["true"], timeout=10.0, cpu_time=5.0, accounting=None if os.geteuid() == 0 else False).check()
        finally:
            cat.kill()
            cat.close()


def rooted() -> None:
    """Over a directory, with a scratch layer on disk; a terminal; for root, in the network namespace of another container."""
    with tempfile.TemporaryDirectory() as base, contextlib.ExitStack() as stack:
        root, disk = Path(base, "root"), Path(base, "disk")
        for directory in (root, root / "etc", disk):
            directory.mkdir(mode=0o700)
        root.chmod(0o755)
        net = stack.enter_context(Container()) if os.geteuid() == 0 else None
        mounts = [Bind(path, path, read_only=True) for path in ("/usr", "/lib", "/lib64", "/bin") if os.path.exists(path)]
        with Container(root, net=net, scratch=Scratch(disk=str(disk)), mounts=mounts, user="0:0") as c, c.popen(["/usr/bin/true"], tty=True) as p:
            assert p.wait(10.0).ok


SCENARIOS = {"plain": plain, "limited": limited, "beside": beside, "rooted": rooted}
