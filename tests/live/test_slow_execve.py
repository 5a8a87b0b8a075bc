"""An execve that takes too long: said as what it is, and no program's fate."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import Bind, Container, SetupError
from tests.support import needs, patience

pytestmark = [needs("userns", "program:busybox"), pytest.mark.unprivileged]


@pytest.fixture
def leased(tmp_path: Path) -> Iterator[Path]:
    """A program that nobody can open: its owner has a lease on it, and does not let go (fcntl(2))."""
    program = tmp_path / "program"
    shutil.copy(shutil.which("busybox") or "", program)
    for path in (tmp_path, program):
        path.chmod(0o755)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(program, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        yield program
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, before)


@pytest.mark.usefixtures("no_leftovers")
def test_an_execve_that_waits_is_no_signal(leased: Path) -> None:
    with Container(mounts=[Bind(leased.parent, "/bin-of-mine", read_only=True)]) as c, c.popen(["sleep", "60"]):
        begin = time.monotonic()
        with pytest.raises(SetupError, match="very busy") as caught:
            c.exec(["/bin-of-mine/program", "true"])
        assert caught.value.errno == errno.ETIMEDOUT
        assert time.monotonic() - begin < patience(4)
        assert c.exec(["true"]).ok
