"""The library inside other programs: threads, forks, hosts that treat SIGCHLD badly, large processes, sudden death."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import sandbox
import sandbox._beginning
from sandbox import Container
from tests.leak.killed import run_and_kill
from tests.support import needs, patience

pytestmark = [needs("userns"), pytest.mark.unprivileged]
KILL_ROUNDS = int(os.environ.get("SANDBOX_KILL_ROUNDS", "12"))


def python(code: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(timeout), check=False)


@pytest.mark.usefixtures("no_leftovers")
def test_64_threads_create_and_run_at_once() -> None:
    results: list[bytes] = []
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(2):
                result = sandbox.run(["/bin/sh", "-c", f"echo {number}; for f in /proc/self/fd/*; do echo ${{f##*/}}; done"])
                out = result.stdout.split()
                assert result.ok, result
                assert out[0] == b"%d" % number
                assert set(out[1:]) <= {b"0", b"1", b"2", b"3"}
                results.append(out[0])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors[0]
    assert len(results) == 128


@pytest.mark.usefixtures("no_leftovers")
def test_64_threads_share_one_container() -> None:
    counted: list[bytes] = []
    with Container() as c:
        threads = [threading.Thread(target=lambda n=n: counted.append(c.exec(["echo", str(n)]).stdout)) for n in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(map(int, counted)) == list(range(64))


def test_a_forked_child_gets_its_own_launcher_and_cannot_use_its_parents_containers() -> None:
    code = """
import os, sandbox
with sandbox.Container() as c:
    assert c.exec(["echo", "1"]).stdout == b"1\\n"
    pid = os.fork()
    if pid == 0:
        try:
            c.exec(["true"])
        except sandbox.ClosedError as error:
            assert "forked" in str(error), error
        else:
            os._exit(2)
        assert sandbox.run(["echo", "child"]).stdout == b"child\\n"
        c.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert c.exec(["echo", "2"]).stdout == b"2\\n"
print("done")
"""
    done = python(code)
    assert done.stdout == "done\n", done.stderr


@needs("cgroup:memory")
def test_a_forked_child_that_leaves_a_with_block_removes_nothing_of_its_parents() -> None:
    code = """
import os, sandbox
from sandbox.cg import Cgroup, Limits
with sandbox.Container(memory="64M") as c, Cgroup("kept", Limits(pids=5)) as group:
    for _ in range(2):
        assert c.exec(["true"]).ok
    program = c.popen(["sh", "-c", "while :; do :; done"])
    c.pause()
    used = c.stats().cpu_time
    pid = os.fork()
    if pid == 0:
        group.remove()
        c.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert c.stats().cpu_time == used
    c.resume()
    assert program.poll() is None
    assert c.exec(["echo", "2"], memory="32M").stdout == b"2\\n"
    assert group.in_force().pids == 5
    program.kill()
    program.close()
print("done")
"""
    done = python(code)
    assert done.stdout == "done\n", done.stderr


@pytest.mark.parametrize("treatment", ["signal.signal(signal.SIGCHLD, signal.SIG_IGN)", "signal.signal(signal.SIGCHLD, reap)"])
def test_a_host_that_ignores_or_reaps_sigchld(treatment: str) -> None:
    code = f"""
import os, signal, sandbox
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]: pass
    except ChildProcessError: pass
{treatment}
for n in range(5):
    assert sandbox.run(["sh", "-c", "exit 7"]).exit_code == 7
print("done")
"""
    done = python(code)
    assert done.stdout == "done\n", done.stderr


def test_the_launcher_is_no_child_of_the_host() -> None:
    code = """
import os, sandbox
sandbox.run(["true"])
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no children")
"""
    assert python(code).stdout == "no children\n"


def test_starting_does_not_take_longer_in_a_large_process() -> None:
    code = """
import time, sandbox
def fastest(so_far):
    times = [so_far]
    for _ in range(100):
        began = time.perf_counter(); sandbox.run(["true"]); times.append(time.perf_counter() - began)
    return min(times)
sandbox.run(["true"])
small = large = 60.0
for _ in range(8):  # in turn: the machine may be busier now than it will be then
    small = fastest(small)
    ballast = bytearray(1 << 30)
    for at in range(0, len(ballast), 4096): ballast[at] = 1
    large = fastest(large)
    del ballast
    if large < 1.6 * small: break
print(large / small)
"""
    done = python(code, timeout=240)
    assert float(done.stdout) < 1.6, done.stderr


@pytest.mark.usefixtures("no_leftovers")
def test_nothing_changes_in_the_host_process() -> None:
    before = os.getcwd(), signal.getsignal(signal.SIGCHLD), signal.getsignal(signal.SIGPIPE), sorted(os.listdir("/proc/self/ns"))
    namespaces = [os.readlink(f"/proc/self/ns/{kind}") for kind in before[3]]
    umask = os.umask(0o022)
    os.umask(umask)
    sandbox.run(["true"])
    assert before == (os.getcwd(), signal.getsignal(signal.SIGCHLD), signal.getsignal(signal.SIGPIPE), sorted(os.listdir("/proc/self/ns")))
    assert namespaces == [os.readlink(f"/proc/self/ns/{kind}") for kind in before[3]]
    now = os.umask(umask)
    assert now == umask


@pytest.mark.usefixtures("no_leftovers")
def test_a_hundred_rounds_leave_descriptors_and_threads_flat() -> None:
    with Container() as c:
        for _ in range(5):  # control groups are held ready from the second on
            c.exec(["true"])
        before = len(os.listdir("/proc/self/fd")), threading.active_count()
        for _ in range(100):
            c.exec(["echo", "x"], input=b"y")
        assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


def test_a_killed_launcher_is_an_error_and_the_next_container_gets_a_new_one() -> None:
    code = """
import os, signal, sandbox
c = sandbox.Container().start()
pids = [int(p) for p in os.listdir("/proc") if p.isdigit()]
def name(p):
    try: return open(f"/proc/{p}/comm").read().strip(), open(f"/proc/{p}/stat").read().rpartition(")")[2].split()[1]
    except OSError: return "", ""
parent = int(name(c.pid)[1])
os.kill(parent, signal.SIGKILL)
for attempt in range(2):
    try:
        c.exec(["true"])
    except (sandbox.BrokenError, sandbox.ClosedError): pass
    else: raise SystemExit("still alive")
c.close()
try:
    sandbox.run(["true"])
except sandbox.BrokenError: pass
assert sandbox.run(["echo", "new"]).stdout == b"new\\n"
print("done")
"""
    done = python(code)
    assert done.stdout == "done\n", done.stderr


BUSY = """
import os, sandbox, threading, time
limits = dict(memory="64M", pids=32) if os.geteuid() == 0 else {}
def work():
    while True:
        with sandbox.Container(**limits) as c:
            c.popen(["sleep", "100"])
            c.exec(["sh", "-c", "setsid sleep 100 & sleep 0.01"])
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("round_", range(KILL_ROUNDS))
def test_kill_9_at_a_random_moment_leaves_nothing(round_: int) -> None:
    delay = random.Random(round_).uniform(0, 0.25)
    assert run_and_kill(BUSY, delay_s=delay, patience_s=1.0) == []


def test_a_forked_child_does_not_keep_its_parents_containers_alive() -> None:
    code = """
import os, sandbox, sys, time
c = sandbox.Container().start()
c.popen(["sleep", "77"])
if os.fork() == 0:
    os.close(1)
    time.sleep(60)
    os._exit(0)
print("ready", flush=True)
time.sleep(60)
"""
    left = run_and_kill(code, delay_s=0.1)
    # The child of the host program itself lives on: that is the host's affair. Nothing of the container does.
    assert not [line for line in left if "sandbox-" in line or "sleep" in line]


def test_idle_for_a_while_then_used_again() -> None:
    with Container() as c:
        assert c.exec(["echo", "a"]).ok
        time.sleep(0.2)
        assert c.exec(["echo", "b"]).ok


def test_the_binary_that_runs_is_sealed() -> None:
    code = """
import os, sandbox
c = sandbox.Container().start()
print(os.readlink(f"/proc/{c.pid}/exe") if os.geteuid() == 0 else "/memfd:sandbox-launcher (deleted)")
"""
    assert python(code).stdout.startswith("/memfd:sandbox-launcher")


def test_a_host_that_has_closed_its_standard_streams() -> None:
    code = """
import os, sandbox
out = os.dup(1)
for fd in (0, 1, 2): os.close(fd)
result = sandbox.run(["echo", "hi"])
os.write(out, result.stdout)
"""
    assert python(code).stdout == "hi\n"


def test_an_interpreter_that_ends_has_nothing_to_complain_of() -> None:
    code = """
import sandbox, time
for _ in range(4):
    sandbox.run(["true"])
    time.sleep(0.01)
print("done")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-X", "dev", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


@pytest.mark.parametrize("threads", [1, 3])
def test_close_in_the_middle_of_a_run_ends_it_with_a_closed_error(threads: int) -> None:
    for delay in (0.0, 0.001, 0.003, 0.01, 0.03) * 4:
        container = Container(**({"memory": "64M"} if os.geteuid() == 0 else {})).create()
        said: list[str] = []

        def work(container: Container = container, said: list[str] = said) -> None:
            try:
                while True:
                    container.exec(["sleep", "0.002"])
            except sandbox.SandboxError as error:
                said.append(type(error).__name__)

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        time.sleep(delay)  # the moment is what is tried out
        container.close()
        for worker in workers:
            worker.join(10)
        assert not any(worker.is_alive() for worker in workers)
        assert set(said) <= {"ClosedError", "BrokenError"}
        assert len(said) == threads


@needs("overlay", "userns")
def test_kill_9_leaves_no_scratch_layer_on_disk_however_it_was_filled(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        (tmp_path / "scratch").mkdir()
    else:
        (tmp_path / "scratch").mkdir(mode=0o700)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    code = f"""
import sandbox, time
from sandbox import Container, Scratch
fill = "cd /tmp; mkdir closed; echo x > closed/x; chmod 0 closed; ln -s {outside} link; mkfifo pipe; for i in $(seq 2000); do : > f$i; done; " \\
       "i=0; while [ $i -lt 600 ]; do mkdir d; cd d; : > f; i=$((i+1)); done; chmod 0 .; sleep 60"
c = Container(scratch=Scratch(disk={str(tmp_path / "scratch")!r})).start()
c.popen(["sh", "-c", fill])
time.sleep(1.0)
print("ready", flush=True)
time.sleep(60)
"""
    assert run_and_kill(code, patience_s=5.0) == []
    deadline = time.monotonic() + patience(30.0)  # a tree of this kind takes its time, but not for ever
    while list((tmp_path / "scratch").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert (outside / "kept").read_text() == "kept"


@pytest.mark.parametrize("setup", ["resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))", "[os.close(fd) for fd in (0, 1, 2)]", "[os.close(fd) for fd in (0, 2)]"])
def test_few_descriptors_and_closed_standard_streams(setup: str) -> None:
    code = f"""
import os, resource, sandbox
out = os.dup(1)
os.dup2(out, 40)
os.close(out)
{setup}
for _ in range(3):
    result = sandbox.run(["echo", "hi"])
os.write(40, result.stdout)
"""
    assert python(code).stdout == "hi\n"


@needs("root", "cgroup:memory")
def test_a_stopped_launcher_is_an_error_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox.shut_down()
    container = Container().create()
    launcher = int(Path(f"/proc/{container.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(launcher, signal.SIGSTOP)
    try:
        with monkeypatch.context() as little:
            little.setattr("sandbox._session.GONE_S", 0.5)
            little.setattr("sandbox._beginning.GONE_S", 0.5)
            with pytest.raises(sandbox.BrokenError, match="is it stopped"):
                container.close()
    finally:
        os.kill(launcher, signal.SIGCONT)
    assert sandbox.run(["true"]).ok


@needs("root")
def test_closing_a_program_of_a_stopped_init_is_an_error_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox.process.GRACE_S", 0.2)
    with Container() as container:
        program = container.popen(["sleep", "60"])
        os.kill(container.pid, signal.SIGSTOP)
        with pytest.raises(sandbox.BrokenError, match="has not ended the program"):
            program.close()


def test_an_interrupt_amid_the_end_of_a_start_is_what_the_caller_gets(monkeypatch: pytest.MonkeyPatch, no_leftovers: None) -> None:
    """Ctrl-C once while a container is made, and once more while that is undone."""
    beginning = sandbox._beginning.Beginning
    kill = beginning.kill
    interrupts = iter([KeyboardInterrupt])

    def interrupted_kill(self: sandbox._beginning.Beginning) -> None:
        kill(self)
        for interrupt in interrupts:
            raise interrupt

    def interrupted(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(beginning, "kill", interrupted_kill)
        patched.setattr(beginning, "_on_event", interrupted)
        with pytest.raises(KeyboardInterrupt), Container():
            pass
    assert sandbox.run(["true"]).ok


def test_a_launcher_that_another_thread_has_found_dead_is_told_as_dead() -> None:
    launcher = sandbox._beginning.driver.Launcher.start()
    launcher.close()
    with pytest.raises(sandbox.BrokenError, match="launcher of this process has died"):
        launcher.create(b"", ())


@needs("cgroup:memory")
@pytest.mark.parametrize("how", ["exec", "popen"])
def test_a_container_that_is_ended_right_after_its_program_is_a_typed_error(how: str, monkeypatch: pytest.MonkeyPatch, no_leftovers: None) -> None:
    def gone(_: object, __: object = None) -> object:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))  # what the files of a removed group say

    with Container(memory="64M") as c:
        monkeypatch.setattr("sandbox.cg.leaf.Leaf.usage", gone)
        with pytest.raises(sandbox.BrokenError, match="what the program used"):
            c.exec(["true"]) if how == "exec" else c.popen(["true"]).wait()
        monkeypatch.undo()


@needs("root")
def test_an_init_holds_nothing_of_other_containers() -> None:
    with contextlib.ExitStack() as stack:
        containers = [stack.enter_context(Container(memory="64M")) for _ in range(12)]
        counts: list[int] = []
        for container in containers:
            assert container.exec(["/bin/true"]).ok  # before its first program init has let go of everything
            counts.append(len(os.listdir(f"/proc/{container.pid}/fd")))
        assert max(counts) - min(counts) <= 1, counts
        assert max(int(fd) for fd in os.listdir(f"/proc/{containers[-1].pid}/fd")) < 200
