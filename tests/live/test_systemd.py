"""A session that systemd made: what is not ours there, and the scope that it gives us."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support import needs

pytestmark = [needs("systemd", "user"), pytest.mark.unprivileged]


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run *code* in a process of its own: delegate() moves who calls it."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


def test_delegate_gives_limits_to_a_user_who_has_none() -> None:
    code = """
import os, sandbox
from sandbox import cg
try:
    sandbox.run(["true"], memory="64M")
except sandbox.UnsupportedError as error:
    print("refused:", "delegate()" in str(error))
sandbox.run(["true"])  # the launcher runs already: it has to come along
start = cg.delegate()
print("again:", cg.delegate() == start, os.access(start, os.W_OK))
hungry = "bytearray(200 << 20)"
print(sandbox.run(["python3", "-c", hungry], memory="64M", pids=20, cpus=0.5, timeout=60).status)
print(sandbox.run(["true"], memory="64M").memory_peak > 0)
try:
    print(sandbox.run(["true"], io_weight=50).status)
except sandbox.UnsupportedError as error:
    print("io:", error.feature)
"""
    done = python(code)
    assert done.stdout.splitlines() == ["refused: True", "again: True True", "Status.MEMORY_LIMIT", "True", "io: cgroup:io"], (done.stdout, done.stderr)


def test_delegate_does_nothing_when_it_has_been_done() -> None:
    code = """
import sandbox
from sandbox import cg
start = cg.delegate()
sandbox.run(["true"], memory="64M")  # which moves this process down
print(cg.delegate() == start)
"""
    done = python(code)
    assert done.stdout == "True\n", done.stderr


def test_who_goes_on_at_once_does_not_make_systemd_give_the_scope_up() -> None:
    """systemd moves one process after the other; controllers that are enabled before the last would keep it out (EBUSY)."""
    code = """
import subprocess, sandbox
from sandbox import cg
from sandbox.cg.tree import count_as_ours
helpers = [subprocess.Popen(["sleep", "1000"]) for _ in range(8)]
for helper in helpers:
    count_as_ours(helper.pid)
start = cg.delegate()
print(sandbox.run(["true"], memory="64M").status)
inside = [open(f"/proc/{helper.pid}/cgroup").read().strip().partition("::")[2] for helper in helpers]
for helper in helpers:
    helper.kill()
    helper.wait()
print(all(start.endswith(path.removesuffix("/sandbox-supervisor")) for path in inside) or inside)
"""
    done = python(code)
    assert done.stdout.splitlines() == ["Status.EXITED", "True"], (done.stdout, done.stderr)


def test_the_command_line_asks_by_itself() -> None:
    argv = [sys.executable, "-m", "sandbox", "run", "--memory", "64M", "--", "sh", "-c", "cat /proc/self/cgroup"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done


def test_the_scope_ends_with_its_process() -> None:
    name = python("from sandbox import cg; print(cg.delegate())").stdout.strip().rpartition("/")[2]
    assert name.endswith(".scope")
    known = subprocess.run(["systemctl", "--user", "list-units", "--all", "--no-legend", name], capture_output=True, text=True, check=False)
    assert "running" not in known.stdout
