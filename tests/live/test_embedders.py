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
            for options in ({}, {"accounting": os.geteuid() == 0}):
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


@pytest.mark.parametrize(
    ("before", "named"),
    [
        ("resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))", "RLIMIT_NOFILE"),
        pytest.param("resource.setrlimit(resource.RLIMIT_NOFILE, (24, 4096))", "RLIMIT_NOFILE", marks=needs("root", "cgroup:memory")),
        ("resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, 0))", "RLIMIT_SIGPENDING"),
        ("resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))", "RLIMIT_NPROC"),
        ("resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20))", "RLIMIT_STACK"),
    ],
)
def test_a_limit_that_leaves_too_little_is_named(before: str, named: str) -> None:
    lines = embedder(
        """
        import sandbox.container
        try:
            with sandbox.Container() as c:
                print(c.exec(["true", *["x" * 100_000] * 3]).ok)
                limits = {"memory": "64M"} if os.geteuid() == 0 else {}
                with sandbox.Container(**limits) as group, sandbox.Container(**limits) as other, sandbox.Container():
                    print(group.exec(["true"]).ok, other.exec(["true"]).ok)
                print("that was enough")
        except sandbox.SandboxError as error:
            print(error)
        """,
        before=before,
    )
    assert named in lines[-1]


@pytest.mark.parametrize(
    "before",
    [
        "os.umask(0o777)",
        "import tempfile; d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)",
        "import tempfile; d = tempfile.mkdtemp(); os.chdir(d); os.chmod(d, 0); os.rmdir(d)",
        "os.environ.clear()",
        "resource.setrlimit(resource.RLIMIT_STACK, (1 << 16, 1 << 16))",
        "signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)",
        "sys.setrecursionlimit(150)",
        "sys.setswitchinterval(1e-6); import gc; gc.set_threshold(1)",
    ],
)
def test_whatever_its_process_is_like_a_container_works_and_programs_see_nothing_of_it(before: str) -> None:
    lines = embedder(
        """
        with sandbox.Container() as c:
            c.write_bytes("/tmp/file", b"content")
            print(c.read_bytes("/tmp/file"))
            r = c.exec(["sh", "-c", "pwd; umask; cat; stat -c %a /tmp/file"], input=b"in\\n", text=False)
            print(*r.stdout.decode().split())
        signal.setitimer(signal.ITIMER_REAL, 0)
        """,
        before=before,
    )
    assert lines == ["b'content'", "/ 0022 in 644"]


def test_functions_that_run_at_exit_may_still_use_it() -> None:
    lines = embedder(
        """
        sandbox.run(["true"])
        """,
        before="""
        import atexit  # before the library registers its own, so after those
        import warnings
        warnings.simplefilter("ignore")
        atexit.register(lambda: print(sandbox.run(["echo", "late"], **limits).stdout))
        limits = {"memory": "64M"} if os.geteuid() == 0 else {}
        """,
    )
    assert lines == ["b'late\\n'"]
