"""Kernel surface: calls, sockets and terminals that a contained program has no business with; channels between two containers; signals."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

import sandbox
from sandbox import PIPE, Bind, Container, Rlimits, Security, Status, Tmpfs
from tests.escape.canary import Canary
from tests.escape.targets import Target
from tests.support import needs, patience

pytestmark = [needs("userns"), pytest.mark.unprivileged]
SH = "/bin/sh"
PYTHON = "/usr/bin/python3"


@pytest.mark.parametrize("part", ["namespaces", "mounts", "calls", "sockets", "devices"])
def test_the_kernel_surface_is_closed(target: Target, part: str) -> None:
    """Kernel bugs reached through user namespaces, nf_tables, overlay, io_uring, keyrings, bpf (CVE-2022-0185, CVE-2023-32233, CVE-2023-0386 ...)."""
    outcome = target.run(["/attacks/surface", part])
    assert len(outcome.answers) >= 10, outcome
    assert outcome.successes == []


def test_other_entries_lead_to_the_same_walls(target: Target) -> None:
    """The numbers of `int 0x80` and of x32 are others: a filter that forgets them forbids nothing."""
    outcome = target.run(["/attacks/entry"])
    assert "done: all tried" in outcome.lines
    assert outcome.successes == []


def test_limits_are_not_raised_from_inside(target: Target) -> None:
    """A supervisor that is root leaves its programs CAP_SYS_RESOURCE, and with it every rlimit."""
    outcome = target.run(["/attacks/surface", "rights"])
    assert "ALLOWED" not in outcome.answers["raise the hard limit nofile"]
    assert outcome.successes == []


@needs("program:gcc", "arch:x86_64")
def test_a_32_bit_entry_ends_the_program(attacks: Path) -> None:
    """The call itself is not looked at: no number of that table is known to the filter."""
    with Container(mounts=[Bind(attacks, "/attacks", read_only=True)]) as c:
        answers = c.exec(["/attacks/entry"]).stdout.decode().splitlines()
    assert [line for line in answers if "int 0x80" in line]
    assert all(line.endswith(": Bad system call") for line in answers if " by " in line), answers


@needs("program:gcc", "arch:x86_64")
def test_strict_names_the_forbidden_system_call(attacks: Path) -> None:
    """An attempt is a verdict there, not an error that the program may ignore; and the container goes on."""
    with Container(mounts=[Bind(attacks, "/attacks", read_only=True)], security=Security("strict")) as c:
        for part in ("namespaces", "mounts", "calls"):
            result = c.exec(["/attacks/surface", part], timeout=patience(20))
            assert result.status is Status.SYSCALL_DENIED, result
            assert result.syscall is not None
        assert c.exec(["echo", "next"]).stdout == b"next\n"


def test_no_profile_answers_a_notification_with_continue() -> None:
    """sandlock: a supervisor that looks at arguments in memory and answers CONTINUE is no boundary, as they change behind its back.

    A pool's filter has init told of calls that the policy allows, and only of those: see tests/unit/test_sec_traces.py.
    """
    sources = {path.name: path.read_text() for path in Path(sandbox.__file__).parent.rglob("*.[chp]*") if path.suffix in {".c", ".h", ".py"}}
    assert sources
    assert {name for name, text in sources.items() if "NOTIF_FLAG_CONTINUE" in text} <= {"init.c", "sys.h"}
    with Container(security=Security("strict")) as c:
        assert c.exec([SH, "-c", "mount -t tmpfs none /tmp; echo SURVIVED"]).status is Status.SYSCALL_DENIED


# --- terminals ------------------------------------------------------------------------------------------------------------


def test_nothing_is_typed_into_the_callers_terminal(target: Target) -> None:
    """CVE-2017-5226, CVE-2019-7303: TIOCSTI and TIOCLINUX give the caller's shell a command to run, also with high bits in the number."""
    master, slave = pty.openpty()
    try:
        attributes = termios.tcgetattr(slave)
        attributes[3] &= ~(termios.ICANON | termios.ECHO)
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        outcome = target.run(["/attacks/terminal"], stdin=slave)
        (waiting,) = struct.unpack("i", fcntl.ioctl(slave, termios.FIONREAD, b"\0" * 4))
        assert outcome.successes == []
        assert waiting == 0
    finally:
        os.close(master)
        os.close(slave)


# A caller whose controlling terminal it is, as of a program that was started from a shell.
CALLER = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
import sandbox
from sandbox import Bind
result = sandbox.run(["/attacks/terminal"], stdin=0, mounts=[Bind(sys.argv[1], "/attacks", read_only=True)])
os.write(2, result.stdout)
"""


def test_nothing_is_typed_into_a_controlling_terminal(attacks: Path) -> None:
    """CVE-2017-5226: the classic case; the caller is a shell's child, and the shell reads what was put in its queue."""
    master, slave = pty.openpty()
    try:
        done = subprocess.run([sys.executable, "-c", CALLER, attacks], stdin=slave, stdout=slave, stderr=subprocess.PIPE, check=True, timeout=patience(60))
        answers = done.stderr.decode().splitlines()
        assert len(answers) == 5
        assert not [line for line in answers if "ALLOWED" in line]
        (waiting,) = struct.unpack("i", fcntl.ioctl(slave, termios.FIONREAD, b"\0" * 4))
        assert waiting == 0
    finally:
        os.close(master)
        os.close(slave)


def test_terminal_input_cannot_be_faked_on_ones_own_terminal(attacks: Path) -> None:
    """CVE-2017-5226: nor into the terminal that we made for it, which the caller may relay."""
    with Container(mounts=[Bind(attacks, "/attacks", read_only=True)]) as c:
        p = c.popen(["/attacks/terminal"], tty=True)
        out, _ = p.communicate(timeout=patience(20))
        p.close()
    assert out.count(b"Operation not permitted") == 5, out


# --- signals --------------------------------------------------------------------------------------------------------------


def test_signals_do_not_reach_whoever_started_it(target: Target) -> None:
    """QDU, DMOJ: a program that kills its parent, its group, everybody: the tool must survive, and say what happened."""
    outcome = target.run(["/attacks/signals", os.readlink("/proc/self/ns/pid")])
    assert outcome.successes == []
    assert "done: all tried" in outcome.lines
    assert outcome.died_of is None


def test_signals_reach_neither_init_nor_other_containers(attacks: Path) -> None:
    """QDU, DMOJ: the container goes on, and so does the one beside it."""
    space = os.readlink("/proc/self/ns/pid")
    with Container(mounts=[Bind(attacks, "/attacks", read_only=True)]) as c, Container() as beside:
        other = beside.popen(["cat"], stdin=PIPE, stdout=PIPE)
        for user in (None, "0" if os.geteuid() == 0 else None):
            result = c.exec(["/attacks/signals", space], user=user, timeout=patience(20))
            assert result.status in {Status.EXITED, Status.SIGNALED}, result
            assert c.exec(["echo", "alive"]).stdout == b"alive\n"
        out, _ = other.communicate(b"still here", timeout=patience(20))
        assert out == b"still here"
        other.close()


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 13, 14, 15, 19, 24, 25, 31, 34, 64])
def test_a_program_that_signals_itself_is_told_as_such(number: int) -> None:
    """QDU, DMOJ: SIGKILL, SIGXCPU, SIGSYS sent to oneself were taken for limits, or for errors of the judge."""
    result = sandbox.run([SH, "-c", f"kill -{number} $$"], timeout=0.3 if number == signal.SIGSTOP else 20)
    expected = Status.TIMEOUT if number == signal.SIGSTOP else Status.SIGNALED
    assert result.status is expected, result
    assert result.signal == (signal.SIGKILL if number == signal.SIGSTOP else number)


# --- channels between containers --------------------------------------------------------------------------------------------

CHANNELS = {
    "shm": ("echo note >/dev/shm/channel", "cat /dev/shm/channel"),
    "tmp": ("echo note >/tmp/channel", "cat /tmp/channel"),
    "mqueue": ("echo >/dev/mqueue/channel; ls /dev/mqueue", "ls /dev/mqueue | grep channel && echo note"),
    "hostname": ("hostname note", "hostname"),
    "sysv": (f"{PYTHON} -c 'import ctypes; print(ctypes.CDLL(None).shmget(4711, 4096, 0o1666))'", f"{PYTHON} -c 'import ctypes; print(\"note\" * (ctypes.CDLL(None).shmget(4711, 4096, 0o666) >= 0))'"),
    "abstract socket": (
        f"{PYTHON} -c 'import socket, time; s = socket.socket(socket.AF_UNIX); s.bind(\"\\0channel\"); s.listen(); print(1, flush=True); time.sleep(60)'",
        f"{PYTHON} -c 'import socket; s = socket.socket(socket.AF_UNIX); s.connect(\"\\0channel\"); print(\"note\")'",
    ),
    "tcp": (
        f"{PYTHON} -c 'import socket, time; s = socket.create_server((\"127.0.0.1\", 4711)); print(1, flush=True); time.sleep(60)'",
        f"{PYTHON} -c 'import socket; socket.create_connection((\"127.0.0.1\", 4711), 2); print(\"note\")'",
    ),
    "proc": ("echo note >/proc/self/comm", "cat /proc/*/comm | grep note"),
    "keyring": (
        f"{PYTHON} -c 'import ctypes; print(ctypes.CDLL(None).syscall(248, b\"user\", b\"channel\", b\"note\", 4, -4))'",
        f"{PYTHON} -c 'import ctypes; print(\"note\" * (ctypes.CDLL(None).syscall(249, b\"user\", b\"channel\", 0, -4) > 0))'",
    ),
}
NOT_EVEN_WITHIN = {"hostname", "keyring"}  # refused to whoever tells


@pytest.mark.parametrize("channel", CHANNELS)
def test_what_one_container_does_another_does_not_see(channel: str) -> None:
    """isolate 2.4 to 2.6: two boxes that were meant to be apart spoke through /dev/shm, message queues, keyrings, abstract sockets."""
    if PYTHON in CHANNELS[channel][0] and not os.path.exists(PYTHON):
        pytest.skip(f"needs program:python3 at {PYTHON}")
    tell, listen = CHANNELS[channel]
    with Container(mounts=[Tmpfs("/tmp")]) as a, Container(mounts=[Tmpfs("/tmp")]) as b:
        teller = a.popen([SH, "-c", f"{tell} 2>/dev/null; echo told; sleep 60; true"], stdout=PIPE)
        assert teller.stdout is not None
        teller.stdout.readline()
        within, heard = (c.exec([SH, "-c", f"{listen} 2>/dev/null"], timeout=patience(20)) for c in (a, b))
        teller.close()
    assert (b"note" in within.stdout) == (channel not in NOT_EVEN_WITHIN), within
    assert b"note" not in heard.stdout, heard


MARKS = """
import fcntl, os
for fd in (0, 1, 2):
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND)
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.flock(fd, fcntl.LOCK_SH)
"""
SEES = """
import fcntl, os, sys
for fd in (0, 1, 2):
    if fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_NONBLOCK | os.O_APPEND) or fcntl.fcntl(fd, fcntl.F_GETOWN):
        sys.exit(3)
"""


@pytest.mark.skipif(not os.path.exists(PYTHON), reason=f"needs program:python3 at {PYTHON}")
@pytest.mark.parametrize("streams", [{}, {"stdout": sandbox.DEVNULL, "stderr": sandbox.DEVNULL}, {"stderr": sandbox.STDOUT}], ids=["pipes", "quiet", "joined"])
def test_what_a_program_sets_on_its_streams_the_next_one_does_not_see(streams: dict[str, int]) -> None:
    """isolate 2.4 to 2.6: an open file that two programs share keeps what one of them sets on it, /dev/null too."""
    with Container() as a, Container() as b:
        assert a.exec([PYTHON, "-c", MARKS], **streams).ok
        for later in (a, b):
            assert later.exec([PYTHON, "-c", SEES], **streams).exit_code == 0


LOCKS = """
import fcntl, sys
try:
    with open(sys.argv[1]) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print("locked", flush=True)
        sys.stdin.read()
except OSError as error:
    print(error, flush=True)
"""


@pytest.mark.skipif(not os.path.exists(PYTHON), reason=f"needs program:python3 at {PYTHON}")
@pytest.mark.xfail(strict=True, reason="flock(2) on a file that both see is a channel of one bit; nothing short of a copy of each file closes it")
def test_locks_on_a_shared_file_are_no_channel() -> None:
    """isolate 2.4: a lock on a file of the host that both boxes see, read-only, is seen by the other."""
    with Container() as a, Container() as b:
        teller = a.popen([PYTHON, "-c", LOCKS, "/usr/bin/env"], stdin=PIPE, stdout=PIPE)
        assert teller.stdout is not None
        assert teller.stdout.readline() == b"locked\n"
        heard = b.exec([PYTHON, "-c", LOCKS, "/usr/bin/env"], timeout=patience(20)).stdout
        teller.close()
    assert heard == b"locked\n"


WATCH = """
import ctypes, os, select
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0)
libc.inotify_add_watch(fd, b"/usr/bin", 0x20)  # IN_OPEN
print("watching", flush=True)
print(os.read(fd, 4096) if select.select([fd], [], [], 5)[0] else b"nothing")
"""


@pytest.mark.skipif(not os.path.exists(PYTHON), reason=f"needs program:python3 at {PYTHON}")
@pytest.mark.xfail(strict=True, reason="inotify(7) tells of a directory that both see who opens what; programs that need it are too many to forbid it")
def test_watching_a_shared_directory_tells_nothing_of_the_host() -> None:
    """isolate 2.4 to 2.6: an inode that is shared tells of its other users."""
    with Container() as c:
        watcher = c.popen([PYTHON, "-c", WATCH], stdout=PIPE)
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == b"watching\n"
        Path("/usr/bin/env").read_bytes()
        told = watcher.stdout.read()
        watcher.close()
    assert told == b"b'nothing'\n"


def test_a_lock_that_a_program_takes_does_not_stop_the_host(tmp_path: Path) -> None:
    """isolate 2.4: a lock on a shared file also holds up the host's own programs; only an exclusive one, and while the program runs."""
    shared = tmp_path / "shared"
    shared.write_text("data")
    with Container(mounts=[Bind(shared, "/shared", read_only=True)]) as c:
        c.exec([SH, "-c", "exec 9</shared; flock -n 9 true"])
        with open(shared) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the program


def test_two_containers_share_no_namespace() -> None:
    """isolate 2.4 to 2.6: what is private is a namespace of its own."""
    script = "for k in ipc net pid uts user mnt cgroup; do readlink /proc/self/ns/$k; done"
    with Container() as a, Container() as b:
        ours = set(a.exec([SH, "-c", script]).stdout.split())
        assert len(ours) == 7
        assert not ours & set(b.exec([SH, "-c", script]).stdout.split())
        assert not {line.decode() for line in ours} & {os.readlink(f"/proc/self/ns/{kind}") for kind in ("ipc", "net", "pid", "uts", "user", "mnt")}


@pytest.mark.skipif(not os.path.exists(PYTHON), reason=f"needs program:python3 at {PYTHON}")
def test_the_hosts_loopback_is_out_of_reach() -> None:
    """A service that listens on 127.0.0.1 for want of a password."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = f"import socket; s = socket.socket(); s.settimeout(2); print(s.connect_ex(('127.0.0.1', {port})))"
        assert sandbox.run([PYTHON, "-c", script]).stdout.strip() not in {b"0", b""}


def test_an_abstract_socket_of_the_host_is_out_of_reach_even_in_its_network(canary: Canary) -> None:
    """CVE-2020-15257: with net="host" the namespace is shared; Landlock (ABI 6) keeps abstract sockets apart all the same."""
    if sandbox.features.landlock_abi() < 6:
        pytest.skip("needs Landlock ABI 6 (Linux 6.12)")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{canary.secret}")
        listener.listen()
        script = f"import socket; s = socket.socket(socket.AF_UNIX); print(s.connect_ex('\\0{canary.secret}'))"
        result = sandbox.run([PYTHON, "-c", script], net="host")
    assert result.stdout.strip() == b"1", result  # EPERM


# --- limits -----------------------------------------------------------------------------------------------------------------


def test_a_limit_of_ones_own_can_be_lowered_only() -> None:
    """A program raises the limit that was set for it, as the supervisor that set it runs as root."""
    script = "ulimit -n 32 && ulimit -n 33 2>/dev/null; ulimit -n; ulimit -c unlimited 2>/dev/null; ulimit -c"
    for user in ("1000:1000", "0:0") if os.geteuid() == 0 else (None,):
        result = sandbox.run([SH, "-c", script], rlimits=Rlimits(nofile=64), user=user)
        assert result.stdout.split() == [b"32", b"0"], result


def test_a_root_inside_cannot_end_the_host_s_wait() -> None:
    """wire.md: what a root of the container can do to init is what a process of its uid can; that ends the container, and nothing else."""
    if not os.path.exists(PYTHON):
        pytest.skip(f"needs program:python3 at {PYTHON}")
    script = "import resource; resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0)); resource.prlimit(1, resource.RLIMIT_CPU, (1, 1))"
    with Container(user="0:0") as c, contextlib.suppress(sandbox.SandboxError):
        c.exec([PYTHON, "-c", script], timeout=2)
        c.exec(["true"], timeout=1)
        c.read_bytes("/etc/passwd")
    assert sandbox.run(["echo", "next"]).stdout == b"next\n"
