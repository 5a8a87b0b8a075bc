"""What the embedding process may be like: its limits, signals, directory, mask, descriptors; programs inside see nothing of that."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.support import import_path, needs, patience

pytestmark = [needs("userns"), pytest.mark.unprivileged, pytest.mark.usefixtures("no_leftovers")]


def embedder(code: str, *, before: str = "", timeout: float = 30) -> list[str]:
    """The lines that a process of its own prints, which does *before* and then *code*."""
    script = f"import os, resource, signal, sys\n{textwrap.dedent(before)}\nimport sandbox\n{textwrap.dedent(code)}"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=patience(timeout),
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": import_path()},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


HOSTILE_SIGNALS = """
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
"""


@pytest.mark.parametrize("before", ["", HOSTILE_SIGNALS])
def test_programs_start_with_default_dispositions_and_an_empty_mask(before: str) -> None:
    # posix_spawn(3) of glibc leaves 32 and 33 ignored, and its sigaction(3) refuses to change that.
    lines = embedder(
        """
        with sandbox.Container() as c:
            first = c.popen(["sleep", "100"])  # what is started beside another is started in another way
            for options in ({}, {"accounting": True}):
                print(c.exec(["cat", "/proc/self/status"], text=True, **options).stdout)
            with c.popen(["cat", "/proc/self/status"], tty=True, text=True) as p:
                print(p.communicate()[0])
            first.kill()
            first.wait()
        """,
        before=before,
    )
    states = [line.split() for line in lines if line.startswith(("SigIgn", "SigBlk", "SigCgt"))]
    assert len(states) == 9
    assert {int(mask, 16) for _, mask in states} == {0}


def test_so_do_programs_in_namespaces_that_were_entered() -> None:
    lines = embedder(
        """
        if os.geteuid() == 0:
            print(sandbox.ns.Namespace.own("uts").enter().run(["cat", "/proc/self/status"], text=True).stdout)
        """
    )
    assert {line.split()[1] for line in lines if line.startswith(("SigIgn", "SigBlk", "SigCgt"))} <= {"0" * 16}


@pytest.mark.parametrize(("bytes_", "said"), [(100_000, "start the launcher"), (1 << 20, "send a large request")])
def test_a_limit_of_file_sizes_that_leaves_no_room_is_named(bytes_: int, said: str) -> None:
    lines = embedder(
        f"""
        resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_}, {bytes_}))
        try:
            with sandbox.Container() as c:
                print(c.exec(["true"]).status.name)
                c.exec(["true", *["x" * 100_000] * 20])
        except sandbox.SetupError as error:
            print(error)
        """
    )
    assert lines[-1].startswith(f"{said}: EFBIG")
    assert "RLIMIT_FSIZE" in lines[-1]


def test_files_beyond_a_limit_of_file_sizes_are_an_error_that_names_it_and_the_container_lives() -> None:
    lines = embedder(
        """
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
        with sandbox.Container() as c:
            for size in (2 << 20, (3 << 20) + 5, 8 << 20):
                try:
                    c.write_bytes("/tmp/file", b"x" * size)
                    print("written", len(c.read_bytes("/tmp/file")))
                except sandbox.SetupError as error:
                    print(error)
            print(c.exec(["true"]).status.name)
        """
    )
    assert lines[0] == f"written {2 << 20}"
    assert ["EFBIG" in line and "RLIMIT_FSIZE" in line for line in lines[1:3]] == [True, True]
    assert lines[3] == "EXITED"
