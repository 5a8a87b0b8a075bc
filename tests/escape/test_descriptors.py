"""Descriptors, executables, code loading: what a program could reach of the runtime, and what the runtime could take from its files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox import Bind, Container, Security, Tmpfs
from tests.escape.canary import Canary
from tests.escape.targets import Refused, Target
from tests.leak.snapshot import Snapshot, descendants
from tests.support import needs, patience, repeats

pytestmark = [needs("userns"), pytest.mark.unprivileged]
SH = "/bin/sh"
ZERO = "0000000000000000"


def test_executables_of_helpers_cannot_be_opened(target: Target) -> None:
    """CVE-2019-5736, bubblewrap#313: overwrite the runtime through /proc/PID/exe, now or once its file is no longer busy."""
    outcome = target.run(["/attacks/helpers", "exe"])
    assert "done: all tried" in outcome.lines
    assert outcome.successes == []


def test_helpers_cannot_be_read_or_traced(target: Target) -> None:
    """CVE-2016-9962, CVE-2016-8659, CVE-2020-5291: a helper that is dumpable gives away its memory, descriptors and environment."""
    outcome = target.run(["/attacks/helpers"])
    assert "done: all tried" in outcome.lines
    assert outcome.successes == []


def test_200_programs_that_are_whatever_runs_them_change_no_executable(attacks: Path, canary: Canary) -> None:
    """CVE-2019-5736: `#!/proc/self/exe` and links to it have the runtime execute itself, while another program waits to write to it."""
    # In shells of their own: one whose `:` cannot be redirected ends.
    watch = "(: <>/work/script) && echo able; while :; do for p in /proc/[0-9]*; do (: <>$p/exe) && echo OPENED $p; done; done"
    with Container(mounts=[Tmpfs("/work")], user=None) as c:
        c.write_bytes("/work/script", b"#!/proc/self/exe\n", mode=0o755)
        assert c.exec(["ln", "-s", "/proc/self/exe", "/work/link"]).ok
        assert c.exec(["ln", "-s", "/proc/1/exe", "/work/init"]).ok
        watcher = c.popen([SH, "-c", f"exec 2>/dev/null; {watch}"], stdout=sandbox.PIPE)
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == b"able\n"
        for number in range(repeats(200)):
            with contextlib.suppress(sandbox.SetupError, sandbox.UsageError):
                c.exec([f"/work/{('script', 'link', 'init')[number % 3]}"], timeout=patience(20))
        assert watcher.poll() is None
        watcher.kill()
        out, _ = watcher.communicate(timeout=patience(20))
        watcher.close()
        # The watcher's own children are programs of the host, which it may not write to either.
        assert b"OPENED" not in out
        assert c.exec(["echo", "alive"]).stdout == b"alive\n"


@pytest.mark.parametrize("options", [{}, {"security": Security(cap_add=["NET_RAW", "SYS_PTRACE"])}, {"user": "1000:1000"}], ids=["run", "added", "user"])
@needs("root", "program:busybox")
def test_no_capability_is_inheritable_or_ambient(base_root: Path, options: dict[str, object]) -> None:
    """CVE-2022-29162, CVE-2022-24769: capabilities that a program could hand on to what it executes."""
    with Container(base_root, **options) as c:  # type: ignore[arg-type]
        for user in (None, "0", "1000"):
            status = dict(line.split(":\t", 1) for line in c.exec(["cat", "/proc/self/status"], user=user).stdout.decode().splitlines() if ":\t" in line)
            assert (status["CapInh"], status["CapAmb"]) == (ZERO, ZERO)


def test_capabilities_and_filter_are_in_place() -> None:
    """CVE-2022-29162: in the default, no set holds any capability, new privileges are off and a filter is on."""
    status = dict(
        line.split(":\t", 1) for line in sandbox.run(["cat", "/proc/self/status"]).stdout.decode().splitlines() if ":\t" in line
    )
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {ZERO}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_inherited_capabilities_are_none(target: Target) -> None:
    """CVE-2022-29162, CVE-2022-24769, as seen from inside."""
    answers = target.run(["cat", "/proc/self/status"]).lines
    assert {line for line in answers if line.startswith(("CapInh", "CapAmb"))} == {f"CapInh:\t{ZERO}", f"CapAmb:\t{ZERO}"}


@pytest.fixture
def leaky_host() -> object:
    """An embedding process that holds inheritable descriptors of the host: `/`, a file, a socket."""
    fds = [os.open("/", os.O_RDONLY | os.O_DIRECTORY), os.open("/etc/passwd", os.O_RDONLY), socket.socket().detach()]
    fds += [fcntl.fcntl(fds[0], fcntl.F_DUPFD, 9), fcntl.fcntl(fds[0], fcntl.F_DUPFD, 200)]
    for fd in fds:
        os.set_inheritable(fd, True)
    yield fds
    for fd in fds:
        os.close(fd)


def test_no_descriptor_of_the_host_reaches_a_program(target: Target, leaky_host: list[int]) -> None:
    """CVE-2024-21626: a leaked descriptor of a host directory is the whole host."""
    outcome = target.run(["/attacks/fds"])
    assert sorted(outcome.answers) == ["0", "1", "2"], outcome.lines


def test_a_descriptor_is_no_working_directory(target: Target, leaky_host: list[int], canary: Canary) -> None:
    """CVE-2024-21626: the working directory /proc/self/fd/N is a directory of the host if the runtime holds one."""
    relative = os.path.relpath(canary.path / "directory" / "below" / "file", "/")
    for number in (*range(3, 12), leaky_host[-1]):
        for below in ("", "/root", "/../../.."):
            with pytest.raises(Refused) if target.is_ours else contextlib.suppress(Refused):
                target.run(["cat", relative, f"../../../{relative}"], cwd=f"/proc/self/fd/{number}{below}")
    assert not canary.is_told_by(*target.said)


def test_a_planted_link_to_a_descriptor_is_no_working_directory() -> None:
    """CVE-2024-21626: the same through a link that an earlier program has left."""
    with Container(mounts=[Tmpfs("/tmp")]) as c:
        for number in range(3, 24):
            c.exec([SH, "-c", f"ln -sf /proc/self/fd/{number} /tmp/l{number}"])
            with pytest.raises((sandbox.SetupError, sandbox.UsageError)):
                c.exec(["/bin/ls"], cwd=f"/tmp/l{number}")


def test_64_threads_that_create_and_run_leak_no_descriptor(attacks: Path, leaky_host: list[int]) -> None:
    """go-judge's leak: descriptors of one thread's container are inherited by another thread's program."""

    def work(_: int) -> set[str]:
        with Container(mounts=[Bind(attacks, "/attacks", read_only=True)]) as c:
            return {line.split(b":")[0].decode() for _ in range(2) for line in c.exec(["/attacks/fds"], input=b"x").stdout.splitlines()}

    with ThreadPoolExecutor(64) as pool:
        assert all(seen == {"0", "1", "2"} for seen in pool.map(work, range(64)))


def test_a_fresh_program_is_never_busy() -> None:
    """go-judge, ETXTBSY (golang/go#22315): a fork of another thread holds a new executable open for writing. 10,000 times."""
    with Container(mounts=[Tmpfs("/work")]) as c:
        program = Path("/bin/true").read_bytes()

        def work(thread: int) -> None:
            for number in range(repeats(2500)):
                path = f"/work/{thread}-{number % 8}"
                c.write_bytes(path, program, mode=0o755)
                result = c.exec([path])
                assert result.ok, (path, result)
                if number % 8 == 7:
                    c.exec(["rm", *(f"/work/{thread}-{old}" for old in range(8))])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))


POISON = """
#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void loaded(void) {
    static const char *const places[] = {"PLACE", "/tmp/poisoned"};
    for (int i = 0; i < 2; i++)
        close(open(places[i], O_WRONLY | O_CREAT, 0600));
}
"""


@needs("root", "program:gcc", "program:busybox")
def test_code_of_the_container_is_never_loaded_or_run_by_us(root: Path, tmp_path: Path, canary: Canary) -> None:
    """CVE-2019-14271, CVE-2026-41567: a privileged helper that looks up a user or unpacks a file with the container's libraries and tools."""
    mark = tmp_path / "poisoned"
    source = tmp_path / "poison.c"
    source.write_text(POISON.replace("PLACE", str(mark)))
    library = root / "lib" / "poison.so"
    library.parent.mkdir()
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    (root / "etc" / "ld.so.preload").write_text("/lib/poison.so\n")
    (root / "etc" / "nsswitch.conf").write_text("passwd: poison files\ngroup: poison files\nhosts: poison\n")
    for name in ("libnss_poison.so.2", "libnss_files.so.2", "libc.so.6", "libgcc_s.so.1"):
        for place in ("lib", "lib64", "lib/x86_64-linux-gnu", "usr/lib", "usr/lib/x86_64-linux-gnu"):
            (root / place).mkdir(parents=True, exist_ok=True)
            (root / place / name).write_bytes(library.read_bytes())
    for place in ("usr/lib/python3.11/encodings", "encodings"):
        (root / place).mkdir(parents=True)
        (root / place / "__init__.py").write_text(f"open({str(mark)!r}, 'w')\n")
    script = f"#!/bin/sh\ntouch {mark} /tmp/poisoned\n"
    for name in ("xz", "gzip", "tar", "zstd", "unpigz", "newuidmap", "newgidmap", "getent", "id", "mount", "iptables", "ps"):
        for place in ("bin", "usr/bin", "sbin"):
            path = root / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_text(script)
            path.chmod(0o755)
    (root / "etc" / "passwd").write_text("root:x:0:0::/:/bin/sh\nmallory:x:1000:1000::/:/bin/sh\n")
    with Container(root, mounts=[Tmpfs("/tmp")], env={"LD_PRELOAD": "/lib/poison.so", "PYTHONHOME": "/", "PATH": "/bin"}, cwd="/") as c:
        assert c.exec(["echo", "static"], user="mallory").stdout == b"static\n"
        c.write_bytes("/tmp/file", b"x")
        assert c.read_bytes("/tmp/file") == b"x"
        c.copy_out("/tmp", tmp_path / "out")
        c.copy_in(tmp_path / "out", "/tmp/in")
        assert c.exec(["ls", "/tmp"]).stdout.split() == [b"file", b"in"]
    assert not mark.exists()


def test_no_socket_of_ours_has_a_name(tmp_path: Path) -> None:
    """CVE-2020-15257: containerd's control socket was abstract, so that every program in the host's network could reach it."""
    before = Snapshot.take()
    with Container(net="host") as c:
        c.exec(["true"])
        assert Snapshot.take().unix_sockets == before.unix_sockets
        names = {line.split()[7] for line in c.read_bytes("/proc/1/net/unix").decode().splitlines()[1:] if len(line.split()) > 7}
        assert not [name for name in names if "sandbox" in name]


def test_abstract_sockets_of_the_host_are_out_of_reach(target: Target) -> None:
    """CVE-2020-15257: abstract sockets belong to the network namespace, which is not to be the host's."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0attack-{os.getpid()}")
        listener.listen()
        assert f"attack-{os.getpid()}".encode() in Path("/proc/net/unix").read_bytes()
        assert f"attack-{os.getpid()}" not in target.run(["cat", "/proc/net/unix"]).stdout.decode()


@needs("root", "program:busybox")
def test_a_numeric_user_is_a_number_whatever_passwd_says(root: Path) -> None:
    """CVE-2016-3697: the line `1000:x:0:0` made "1000" the name of a root."""
    (root / "etc" / "passwd").write_text("1000:x:0:0::/:/bin/sh\nmallory:x:4294967296:0::/:/bin/sh\n0x0:x:0:0::/:\n")
    with Container(root) as c:
        assert c.exec(["id", "-u"], user="1000").stdout == b"1000\n"
        assert c.exec(["id", "-u"], user=1000).stdout == b"1000\n"
        with pytest.raises(sandbox.UsageError):
            c.exec(["id", "-u"], user="mallory")


OVERFLOWS = ["2147483648", "4294967295", "4294967296", "-1", "18446744073709551616", "1000:4294967296", "1000:-1", "+0", " 0", "0 ", "\u0660"]  # an Arabic zero is a digit for int()


@needs("root", "program:busybox")
@pytest.mark.parametrize("user", OVERFLOWS)
def test_a_user_that_overflows_is_refused(base_root: Path, user: str) -> None:
    """CVE-2024-40635, CVE-2026-46680: a number beyond 32 bits came out as 0."""
    with Container(base_root) as c, pytest.raises(sandbox.UsageError):
        c.exec(["true"], user=user)
    with pytest.raises(sandbox.UsageError), Container(base_root, user=user) as c:
        c.exec(["true"])


def test_a_user_that_overflows_is_not_root(target: Target) -> None:
    """CVE-2024-40635, as seen from inside."""
    for user in ("4294967296", "4294967295", "-1"):
        with contextlib.suppress(Refused):
            assert target.run(["id", "-u"], user=user).stdout.strip() not in {b"0", b"-1", b"4294967295"}, user


@needs("root", "program:busybox")
def test_supplementary_groups_are_those_of_the_group_file(root: Path) -> None:
    """CVE-2022-36109: without them, a group that is meant to deny access denies nothing."""
    (root / "etc" / "passwd").write_text("mallory:x:1000:1001::/:/bin/sh\n")
    (root / "etc" / "group").write_text("own:x:1001:\naudio:x:29:other,mallory\nvideo:x:44:malloryx\nkvm:x:108:mallory\n")
    with Container(root) as c:
        assert sorted(c.exec(["id", "-G"], user="mallory").stdout.split()) == [b"1001", b"108", b"29"]
        assert c.exec(["id", "-G"], user="mallory:audio").stdout.split() == [b"29"]
        assert c.exec(["id", "-G"], user="1234:5").stdout.split() == [b"5"]


PLANTS: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "link": lambda path: path.symlink_to("/etc/shadow"),
    "loop": lambda path: path.symlink_to(path.name),
    "huge": lambda path: subprocess.run(["truncate", "--size=1T", path], check=True),
    "lines": lambda path: path.write_bytes(b"x:x:1:1::/:\n" * 200_000),
    "directory": lambda path: path.mkdir(),
    "device": lambda path: os.mknod(path, 0o020666, os.makedev(1, 5)),
    "binary": lambda path: path.write_bytes(random.Random(1).randbytes(1 << 20)),
}


@needs("root", "program:busybox")
@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("name", ["passwd", "group"])
def test_a_hostile_passwd_or_group_neither_hangs_nor_leaks(root: Path, name: str, plant: str) -> None:
    """CVE-2024-9676: a symbolic link, a FIFO or a terabyte where the runtime looks users up."""
    target = root / "etc" / name
    target.unlink()
    PLANTS[plant](target)
    began = time.monotonic()
    with Container(root) as c:
        assert c.exec(["stat", "-L", "-c", "%u", "/proc/self"]).stdout == b"0\n"
        with pytest.raises(sandbox.UsageError):
            c.exec(["true"], user="daemon" if name == "passwd" else "root:daemon")
    assert time.monotonic() - began < patience(20)


@needs("root", "program:busybox")
def test_a_linked_etc_leads_to_no_file_of_the_host(root: Path) -> None:
    """CVE-2024-9676: the directory above is the link."""
    for path in (root / "etc").iterdir():
        path.unlink()
    (root / "etc").rmdir()
    (root / "etc").symlink_to("/etc")
    with Container(root) as c:
        assert c.exec(["stat", "-L", "-c", "%u", "/proc/self"]).stdout == b"0\n"
        with pytest.raises(sandbox.UsageError):
            c.exec(["true"], user="daemon")


def test_the_environment_of_the_host_stays_there(target: Target, canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    """CVE-2021-3602: variables of the runtime's caller, tokens among them, showed in the container and its /proc."""
    monkeypatch.setenv("TOKEN", canary.secret)
    target.run(["env"])
    target.run(["/bin/sh", "-c", "cat /proc/*/environ /proc/*/cmdline"])
    assert not canary.is_told_by(*target.said)


def test_the_environment_of_the_host_is_in_no_process_or_file_of_ours(canary: Canary, tmp_path: Path) -> None:
    """CVE-2021-3602: nor in what the runtime keeps: arguments and environments of its helpers, state, logs. And that is its owner's alone."""
    code = """
import sandbox, sys
kept = sandbox.keep.start(["sh", "-c", "env; echo ready; sleep 1000"], name="kept")
all(b"ready" not in record.data for record in kept.records(follow=True))
with sandbox.Container() as c:
    c.exec(["true"])
    print(kept.config.keeper, flush=True)
    sys.stdin.read()
kept.remove(force=True)
"""
    env = {**os.environ, "TOKEN": canary.secret, "SANDBOX_CONTAINERS": str(tmp_path / "kept")}
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as child:
        assert child.stdout is not None
        keeper = int(child.stdout.readline())
        helpers = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_ours(pid)]
        if os.geteuid() == 0:  # to anybody else they are closed, which is the point
            assert helpers
        for pid in (keeper, *helpers):
            for name in ("environ", "cmdline"):
                with contextlib.nullcontext() if pid == keeper else contextlib.suppress(OSError):
                    assert not canary.is_told_by(Path(f"/proc/{pid}/{name}").read_bytes())
        found = [*tmp_path.glob("tmp/**/*"), *tmp_path.glob("kept/**/*")]
        assert {path.name for path in found} >= {"config.json", "log.0", "socket"}
        assert not canary.is_told_by(*(path.read_bytes() for path in found if path.is_file()))
        assert [path for path in found if path.lstat().st_mode & 0o077 and not path.is_symlink()] == []


def _is_ours(pid: int) -> bool:
    try:
        return "memfd:sandbox" in os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False


HOSTILE_ROUNDS = repeats(400)
# wire.md: what an init may send, and some of what only others may.
BODIES = {64: "<I", 65: "<iQQQ", 66: "<BIII", 67: "<I", 68: "<I", 69: "<Bii" + 12 * "Q", 70: "<II", 1: "<Q", 999: "<I"}
EDGES = [0, 0, 1, 2, 5, 9, 13, 0x7F, 0x137F, 255, 4096, 65535, -1, 2**31 - 1, -(2**31), 2**32 - 1, 2**63, 2**64 - 1]
WIDTHS = {"B": (0, 2**8), "I": (0, 2**32), "i": (-(2**31), 2**31), "Q": (0, 2**64)}


def _hostile_message(dice: random.Random) -> bytes:
    """A datagram of an init that was taken over: numbers at the edges of their types, lengths that lie, noise."""
    kind = dice.choice(list(BODIES))
    body = b"".join(
        struct.pack(f"<{letter}", dice.choice([edge for edge in EDGES if WIDTHS[letter][0] <= edge < WIDTHS[letter][1]])) for letter in BODIES[kind][1:]
    )
    if dice.random() < 0.2:
        body = dice.randbytes(dice.choice([0, 1, 4, 8, 93, 512, 4096]))
    length = len(body) if dice.random() < 0.9 else dice.choice([0, 1, 0xFFFFFFFF])
    return struct.pack("<HHI", kind, int(dice.random() < 0.05), length) + body


HOSTS_QUESTIONS: dict[str, Callable[[Container], object]] = {
    "exec": lambda c: c.exec(["true"], timeout=5),
    "exec with input": lambda c: c.exec(["cat"], input=b"x", timeout=5),
    "popen": lambda c: _run_beside(c, tty=False),
    "popen in a terminal": lambda c: _run_beside(c, tty=True),
    "read_bytes": lambda c: c.read_bytes("/etc/passwd"),
    "write_bytes": lambda c: c.write_bytes("/tmp/x", b"x"),
}


def _run_beside(c: Container, *, tty: bool) -> None:
    with c.popen(["true"], tty=tty) as program:
        program.wait(5)


@pytest.mark.parametrize("asks", HOSTS_QUESTIONS)
def test_an_init_that_was_taken_over_fools_nobody(asks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """jd4 (unpickled what the sandboxed side sent), nsjail#341: hostile answers end in an error of ours, soon, and leave the host no descriptors."""
    from sandbox._launch import driver

    dice = random.Random(asks)
    answers: list[bytes] = []

    def hostile(reader: Callable[..., Any]) -> Callable[..., Any]:
        def receive(channel: driver.Channel, timeout: float | None = None) -> Any:
            if not answers:
                return reader(channel, timeout)
            # The real reader is given what a hostile init would have sent.
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours, theirs:
                socket.send_fds(theirs, [answers.pop(0)], [theirs.fileno()] * dice.choice([0, 0, 1, 2, 30]))
                return reader(driver.Channel(ours), timeout)

        return receive

    for name in ("receive", "receive_alone"):
        monkeypatch.setattr(driver.Channel, name, hostile(getattr(driver.Channel, name)))
    before = None
    for _ in range(HOSTILE_ROUNDS // len(HOSTS_QUESTIONS)):
        c = Container(mounts=[Tmpfs("/tmp")]).create()
        answers[:] = [_hostile_message(dice) for _ in range(dice.choice([1, 2, 3]))]
        began = time.monotonic()
        with contextlib.suppress(sandbox.SandboxError, TimeoutError):
            HOSTS_QUESTIONS[asks](c)
        assert time.monotonic() - began < patience(10)
        answers.clear()
        c.close()
        fds = len(os.listdir("/proc/self/fd"))
        # A few are kept open between runs, whatever init says; what came with the messages is not among them.
        before = before or fds
        assert fds <= before + 4


@pytest.mark.parametrize("asks", ["exec", "wait"])
def test_a_deadline_that_init_does_not_keep_is_kept_by_the_host(asks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """jd4: a sandboxed side that says nothing at all kept the host waiting."""
    for module in ("_pump", "_runs", "process"):
        monkeypatch.setattr(f"sandbox.{module}.GRACE_S", 0.5)
    with Container() as c:
        program = c.popen(["sleep", "60"], timeout=0.5)
        os.kill(c.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(sandbox.BrokenError, match="deadline"):
            program.wait() if asks == "wait" else c.exec(["sleep", "60"], timeout=0.5)
        assert time.monotonic() - began < patience(20)
        program.close()


def test_only_pidfds_name_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """nsjail#341: a number that came from inside, or that was reused, is a stranger's. The library signals nobody by number."""

    def refuse(*_: object) -> None:
        raise AssertionError("a process was signalled by its number")

    monkeypatch.setattr(os, "kill", refuse)
    monkeypatch.setattr(os, "killpg", refuse)
    with Container() as c:
        program = c.popen(["sleep", "60"])
        c.kill()
        program.wait(20)
        program.close()
        c.exec(["sleep", "60"], timeout=0.1)


def test_threads_are_not_left_waiting_when_a_container_dies_under_them() -> None:
    """jd4: the host waited for ever for a sandbox that had been killed."""
    with Container() as c:
        errors: list[BaseException] = []

        def work() -> None:
            try:
                c.exec(["sleep", "60"])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len([pid for pid in _inside(c.pid) if _comm(pid) == "sleep"]) < 4:
            time.sleep(0.01)  # nothing tells that a program has begun
        os.kill(c.pid, signal.SIGKILL)
        for thread in threads:
            thread.join(30)
        assert len(errors) == 4
        assert all(isinstance(error, sandbox.SandboxError) for error in errors), errors


def _inside(pid: int) -> list[int]:
    return descendants(pid)


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""
