"""Containers and programs in them, on the real kernel, as root and not."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox import DEVNULL, PIPE, STDOUT, Bind, Container, Status, Tmpfs
from sandbox.cg import Mode, detect
from sandbox.sec import NOTIFY, Profile, Security, fail, profile_policy, rule
from tests.support import needs, patience

pytestmark = [needs("userns"), pytest.mark.unprivileged, pytest.mark.usefixtures("no_leftovers")]
SH = "/bin/sh"


def sh(container: Container, script: str, **options: object) -> sandbox.Result:
    return container.exec([SH, "-c", script], **options)  # type: ignore[arg-type]


def test_run_gives_output_and_exit_code() -> None:
    result = sandbox.run([SH, "-c", "echo out; echo err >&2; exit 3"])
    assert (result.stdout, result.stderr, result.exit_code, result.status) == (b"out\n", b"err\n", 3, Status.EXITED)
    assert not result.ok
    assert result.returncode == 3


def test_a_signal_is_a_value() -> None:
    result = sandbox.run([SH, "-c", "kill -SEGV $$"])
    assert (result.status, result.signal, result.exit_code) == (Status.SIGNALED, signal.SIGSEGV, None)
    assert result.returncode == -signal.SIGSEGV


def test_killing_oneself_is_not_a_limit() -> None:
    assert sandbox.run([SH, "-c", "kill -KILL $$"]).status is Status.SIGNALED


def test_input_reaches_the_program_and_large_input_does_not_block() -> None:
    data = os.urandom(3 << 20)
    result = sandbox.run(["cat"], input=data)
    assert result.stdout == data


def test_a_program_that_reads_no_input_ends_all_the_same() -> None:
    assert sandbox.run(["true"], input=b"x" * (1 << 20)).ok


def test_stdin_is_empty_by_default() -> None:
    assert sandbox.run(["cat"]).stdout == b""


def test_text_mode_decodes_and_translates_newlines() -> None:
    assert sandbox.run(["printf", "a\\r\\nb\\303\\244"], text=True).stdout == "a\nbä"


def test_streams_can_be_joined_dropped_and_sent_to_files(tmp_path: Path) -> None:
    with Container() as c:
        joined = sh(c, "echo a; echo b >&2; echo c", stderr=STDOUT)
        assert (joined.stdout, joined.stderr) == (b"a\nb\nc\n", None)
        assert sh(c, "echo a", stdout=DEVNULL).stdout is None
        with (tmp_path / "out").open("wb") as file:
            sh(c, "echo to a file", stdout=file)
        assert (tmp_path / "out").read_bytes() == b"to a file\n"


def test_passed_descriptors_arrive_at_their_numbers() -> None:
    read, write = os.pipe()
    with Container() as c:
        assert sh(c, "echo one >&7; ls /proc/self/fd | tr '\\n' ' '", pass_fds={7: write}).stdout.split()[:4] == [b"0", b"1", b"2", b"3"]
    os.close(write)
    with open(read, "rb") as file:
        assert file.read() == b"one\n"


def test_only_three_descriptors_reach_a_program(tmp_path: Path) -> None:
    leaked = os.open("/", os.O_RDONLY)
    os.set_inheritable(leaked, True)
    try:
        result = sandbox.run([SH, "-c", "for f in /proc/self/fd/*; do echo ${f##*/}; done"])
    finally:
        os.close(leaked)
    # The shell opens the directory while it lists: 3 is that.
    assert set(result.stdout.split()) <= {b"0", b"1", b"2", b"3"}


def test_environment_starts_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_SECRET", "hunter2")
    result = sandbox.run(["env"], env={"A": "b"})
    names = {line.partition(b"=")[0] for line in result.stdout.splitlines()}
    assert names == {b"PATH", b"HOME", b"LANG", b"A"}


def test_a_directory_that_cannot_be_entered_is_told_with_what_to_do() -> None:
    with Container(mounts=[Tmpfs("/tmp")]) as c:
        sh(c, "ln -s loop /tmp/loop; mkdir -m 0 /tmp/closed; touch /tmp/file")
        cases = {"/tmp/loop": "in a circle", "/dev/fd/3": "descriptor", "/tmp/file": "give a directory", "/tmp/nothing": "create it"}
        if os.geteuid() == 0:  # else that user is who has made the container, whose init has rights over all that is his
            cases["/tmp/closed"] = "let that user enter it"
        for path, said in cases.items():
            with pytest.raises(sandbox.UsageError, match=f"cwd: {path}: .*{said}"):
                c.exec(["true"], cwd=path)


@pytest.mark.parametrize(("argv", "env", "said"), [(["echo", "x" * 131072], {}, "argv"), (["env"], {"A": "x" * 131072}, "env")])
def test_what_is_longer_than_execve_takes_is_refused_before_anything_is_started(argv: list[str], env: dict[str, str], said: str) -> None:
    with Container() as c, pytest.raises(sandbox.UsageError, match=f"^{said}: .* longer than 131071 bytes"):
        c.exec(argv, env=env)


def test_cwd_hostname_and_umask() -> None:
    with Container(hostname="box", cwd="/tmp") as c:
        assert sh(c, "pwd; hostname; umask; cat /etc/hostname", umask=0o027).stdout.split() == [b"/tmp", b"box", b"0027", b"box"]
        assert sh(c, "pwd", cwd="/usr").stdout == b"/usr\n"


@needs("root")
def test_users_by_number_name_and_group() -> None:
    with Container() as c:
        assert sh(c, "id -u; id -g").stdout.split() == [b"1000", b"1000"]
        assert sh(c, "id -u; id -g; id -G", user="0:0").stdout.split() == [b"0", b"0", b"0"]
        assert sh(c, "id -u", user="nobody").stdout.split() == [b"65534"]
        assert sh(c, "id -u; id -g", user="5:7").stdout.split() == [b"5", b"7"]
        for wrong in ("nosuchuser", "-1", "65536", "4294967295", "4294967296", "2147483648", "0:nosuchgroup", ":", ""):
            with pytest.raises(sandbox.UsageError):
                sh(c, "true", user=wrong)


def test_a_deadline_ends_everything_and_keeps_the_output() -> None:
    started = time.monotonic()
    result = sandbox.run([SH, "-c", "echo begun; (sleep 30 &) ; sleep 30"], timeout=1.0)
    assert result.status is Status.TIMEOUT
    assert result.stdout == b"begun\n"
    assert time.monotonic() - started < patience(15)


@pytest.mark.parametrize("script", ["trap '' TERM; sleep 30", "kill -STOP $$", "setsid sleep 30", "exec <&- >&- 2>&-; sleep 30"])
def test_a_deadline_holds_against_tricks(script: str) -> None:
    assert sandbox.run([SH, "-c", script], timeout=0.2).status in {Status.TIMEOUT, Status.EXITED}


def test_cpu_limit_ends_a_busy_program() -> None:
    result = sandbox.run([SH, "-c", "while :; do :; done"], cpu_time=0.3, timeout=20, **_accounting_off())
    assert result.status is Status.CPU_LIMIT
    assert 0.25 < result.cpu_time < 2


def _accounting_off() -> dict[str, Any]:
    """Without cgroups the CPU time is summed from /proc; with them it comes from the leaf."""
    return {} if os.geteuid() == 0 else {"accounting": False}


def test_sleeping_uses_no_cpu_time() -> None:
    # On a slow machine even starting takes some.
    seconds = max(0.3, patience(0.03))
    result = sandbox.run(["sleep", f"{seconds * 1.4}"], cpu_time=seconds, timeout=20, **_accounting_off())
    assert result.status is Status.EXITED


def test_output_limit_cuts_and_kills() -> None:
    result = sandbox.run(["yes"], output_limit="64K", timeout=20)
    assert result.status is Status.OUTPUT_LIMIT
    assert result.stdout_truncated
    assert len(result.stdout) == 65536


def test_a_grandchild_with_the_pipe_does_not_hold_the_result() -> None:
    started = time.monotonic()
    assert sandbox.run([SH, "-c", "setsid sleep 60 & echo done"]).stdout == b"done\n"
    assert time.monotonic() - started < patience(5)


def test_nothing_that_a_program_started_outlives_it_while_others_run() -> None:
    with Container() as c:
        other = c.popen(["sleep", "60"])
        first = sh(c, "setsid sleep 61 & setsid sh -c 'setsid sleep 62 & setsid sleep 63 &' ; echo started")
        assert first.stdout == b"started\n"
        alive = sh(c, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '").stdout
        assert b"sleep 60" in alive
        assert not any(b"sleep 6%d" % n in alive for n in (1, 2, 3))
        other.kill()
        assert other.wait().status is Status.KILLED


def test_many_programs_at_once_in_one_container() -> None:
    results: dict[int, bytes] = {}
    with Container() as c:
        threads = [threading.Thread(target=lambda n=n: results.__setitem__(n, sh(c, f"sleep 0.05; echo {n}").stdout)) for n in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {n: b"%d\n" % n for n in range(24)}


def test_popen_talks_both_ways() -> None:
    with Container() as c, c.popen(["cat"], stdin=PIPE, stdout=PIPE) as p:
        assert p.stdin is not None
        assert p.stdout is not None
        p.stdin.write(b"hello\n")
        p.stdin.flush()
        assert p.stdout.readline() == b"hello\n"
        assert p.poll() is None
        p.stdin.close()
        assert p.wait(10).ok


def test_popen_communicate_and_signals() -> None:
    with Container() as c:
        p = c.popen([SH, "-c", "cat; echo err >&2"], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)
        assert p.communicate("täst") == ("täst", "err\n")
        assert p.returncode == 0
        assert p.result is not None
        assert p.result.stdout == "täst"
        p.close()
        q = c.popen(["sleep", "60"])
        with pytest.raises(TimeoutError):
            q.wait(0.05)
        q.terminate()
        assert (q.wait(10).status, q.returncode) == (Status.SIGNALED, -signal.SIGTERM)
        q.close()


def test_a_terminal_has_a_size_and_a_controlling_process() -> None:
    with Container() as c:
        p = c.popen([SH, "-c", "stty size; tty; test -t 0 && test -t 1 && test -t 2 && echo all; read line; stty size"], tty=True, size=(33, 101))
        assert p.stdin is not None
        p.resize(40, 90)
        p.stdin.write(b"go\n")
        p.stdin.flush()
        out, _ = p.communicate(timeout=20)
        assert b"/dev/pts/" in out
        assert b"all" in out
        assert b"40 90" in out
        assert p.wait().ok
        p.close()


def test_what_was_written_to_a_terminal_is_read_to_its_end() -> None:
    with Container() as c, c.popen(["echo", "hi"], tty=True) as p, c.popen(["echo", "ho"], tty=True, text=True) as q:
        assert p.stdout is not None
        assert q.stdout is not None
        assert p.wait().ok
        assert p.stdout.read() == b"hi\r\n"
        assert p.stdout.read() == b""
        assert list(q.stdout) == ["ho\n"]


def test_files_in_and_out(tmp_path: Path) -> None:
    with Container(mounts=[Tmpfs("/work")]) as c:
        c.write_bytes("/work/a", b"x" * 3_000_000)
        assert c.read_bytes("/work/a") == b"x" * 3_000_000
        c.write_bytes("/work/prog", b"#!/bin/sh\necho ran\n", mode=0o755)
        assert c.exec(["/work/prog"]).stdout == b"ran\n"
        tree = tmp_path / "tree"
        (tree / "deep").mkdir(parents=True)
        (tree / "deep" / "file").write_bytes(b"data")
        (tree / "link").symlink_to("deep/file")
        c.copy_in(tree, "/work/tree")
        assert sh(c, "cat /work/tree/link; echo more > /work/tree/new").stdout == b"data"
        c.copy_out("/work/tree", tmp_path / "back")
        assert (tmp_path / "back" / "new").read_bytes() == b"more\n"
        assert (tmp_path / "back" / "link").is_symlink()
        with pytest.raises(sandbox.SetupError):
            c.read_bytes("/work/missing")
        with pytest.raises(sandbox.UsageError, match="larger"):
            c.read_bytes("/work/a", max_size=1000)


def test_planted_links_lead_nowhere(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"canary")
    with Container(mounts=[Tmpfs("/work")]) as c:
        sh(c, f"ln -s {secret} /work/final; ln -s / /work/root; ln -s ../../../../../../{secret} /work/dots; mkfifo /work/fifo")
        for path in ("/work/final", f"/work/root{secret}", "/work/dots"):
            with pytest.raises((sandbox.SetupError, sandbox.UsageError)):
                c.read_bytes(path)
        with pytest.raises(sandbox.SetupError):
            c.write_bytes("/work/final", b"overwritten")
        for special in ("/work/fifo", "/dev/null", "/work"):
            with pytest.raises(sandbox.UsageError):
                c.read_bytes(special)
    assert secret.read_bytes() == b"canary"


def test_bind_mounts_show_and_protect(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("shown")
    (tmp_path / "in").chmod(0o755)
    with Container(mounts=[Bind(tmp_path / "in", "/src", read_only=True)]) as c:
        assert sh(c, "cat /src/file; echo x > /src/file || echo refused").stdout == b"shownrefused\n"
    assert (tmp_path / "in" / "file").read_text() == "shown"


def test_filling_the_scratch_gives_enospc() -> None:
    with Container(mounts=[Tmpfs("/work", size="1M", inodes=64)]) as c:
        assert b"No space left" in sh(c, "head -c 2000000 /dev/zero > /work/big").stderr
        sh(c, "rm -f /work/big")
        assert b"No space left" in sh(c, "for i in $(seq 100); do : > /work/$i || exit 1; done").stderr


def test_read_only_root_cannot_be_written() -> None:
    with Container(read_only=True) as c:
        result = sh(c, "for d in / /etc /usr /tmp /home/sandbox /proc/sys /dev; do : > $d/x && echo wrote $d; done; :")
        assert result.stdout == b""


def test_kill_ends_all_programs_and_the_container_stays() -> None:
    with Container() as c:
        p = c.popen(["sleep", "60"])
        c.kill()
        assert p.wait(10).status is Status.KILLED
        assert sh(c, "echo alive").stdout == b"alive\n"
        p.close()


def test_close_twice_and_use_after_close() -> None:
    c = Container()
    with pytest.raises(sandbox.ClosedError):
        c.exec(["true"])
    with c:
        assert c.is_running
    c.close()
    with pytest.raises(sandbox.ClosedError):
        c.exec(["true"])
    with pytest.raises(sandbox.ClosedError):
        c.start()


def test_interrupting_exec_kills_the_program() -> None:
    class InterruptionError(Exception):
        pass

    def handler(signum: int, frame: object) -> None:
        raise InterruptionError

    old = signal.signal(signal.SIGALRM, handler)
    try:
        with Container() as c:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(InterruptionError):
                c.exec(["sleep", "60"])
            assert b"sleep" not in sh(c, "cat /proc/[0-9]*/cmdline").stdout.replace(b"cat", b"")
    finally:
        signal.signal(signal.SIGALRM, old)


def test_a_thousand_zombies_and_a_deep_tree() -> None:
    result = sandbox.run([SH, "-c", "i=0; while [ $i -lt 1000 ]; do (:) & i=$((i+1)); done; wait; echo ok"], timeout=60)
    assert result.stdout == b"ok\n"


def test_network_is_loopback_only() -> None:
    result = sandbox.run([SH, "-c", "cat /proc/net/dev | tail -n +3 | cut -d: -f1"])
    assert result.stdout.split() == [b"lo"]


def test_explain_names_the_operations_and_starts_nothing() -> None:
    text = Container(memory="64M").explain()
    assert "Pivot" in text
    assert "Seccomp" in text
    assert "memory = 67108864" in text


def test_namespaces_are_all_private() -> None:
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
    result = sandbox.run([SH, "-c", "for k in " + " ".join(kinds) + "; do readlink /proc/self/ns/$k; done"])
    ours = {os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
    assert len(result.stdout.split()) == len(kinds)
    assert not ours & set(result.stdout.decode().split())


@needs("kernel:5.12")
def test_time_namespace_shifts_the_clocks() -> None:
    with Container(time_offsets=(0.0, 864000.0)) as c:
        inside = float(sh(c, "cut -d' ' -f1 /proc/uptime").stdout)
    outside = float(Path("/proc/uptime").read_text().split()[0])
    assert 863000 < inside - outside < 865000


def cpus_of(pid: int | str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith("Cpus_allowed_list"))


def test_programs_have_the_cpus_of_their_container() -> None:
    mine = cpus_of("self")
    show = ["/bin/grep", "Cpus_allowed_list", "/proc/self/status"]
    with Container() as c:
        for _ in range(3):
            assert c.exec(show).stdout.decode().strip() == mine
        with c.popen([SH, "-c", "echo; read x"], stdin=PIPE, stdout=PIPE) as running:
            assert running.stdout is not None
            running.stdout.readline()
            assert c.exec(show).stdout.decode().strip() == mine
            assert cpus_of(c.pid) == mine  # init is kept to one CPU only until a program has started


def test_root_inside_cannot_tie_init_to_a_cpu() -> None:
    with Container(user=0) as c:
        assert not sh(c, "taskset -p 1 1").ok
        assert cpus_of(c.pid) == cpus_of("self")


@pytest.mark.parametrize("action", ["EPERM", "NOTIFY"])
def test_a_policy_may_deny_what_init_only_likes_to_have(action: str) -> None:
    names = "sched_getaffinity sched_setaffinity getcpu"
    denied = rule(names, NOTIFY if action == "NOTIFY" else fail(errno.EPERM))
    policy = profile_policy(Profile.DEFAULT, clone3=detect().mode is Mode.V2).first(denied)
    with Container(security=Security(seccomp=policy)) as c:
        assert c.exec(["/bin/true"], timeout=10).ok
        refused = sh(c, "taskset -p $$", timeout=10)
    assert refused.status is (Status.SYSCALL_DENIED if action == "NOTIFY" else Status.EXITED)
    assert not refused.ok


@needs("cgroup-v2")
def test_a_policy_without_clone3_is_refused_where_init_needs_it() -> None:
    with pytest.raises(sandbox.UnsupportedError, match="clone3"), Container(security=Security(seccomp=profile_policy(Profile.DEFAULT))):
        pass


def test_a_program_whose_container_dies_is_told_so() -> None:
    with Container() as c:
        process = c.popen(["sleep", "100"])  # the first one, on the channel where the launcher says that init has gone
        os.kill(c.pid, signal.SIGKILL)
        with pytest.raises(sandbox.BrokenError, match="the container ended"):
            process.wait(30)
        process.close()


@pytest.mark.parametrize("beside", [False, True])
def test_a_signal_reaches_the_first_process_or_all_that_it_has_started(beside: bool) -> None:
    script = "trap 'echo first' USR1; (trap 'echo second; exit' USR1; echo ready; while :; do sleep 0.01; done) & wait; wait; wait"
    with Container() as c:
        other = c.popen(["sh", "-c", "trap 'exit 9' USR1; while :; do sleep 0.01; done"]) if beside else None
        with c.popen([SH, "-c", script], stdout=PIPE) as p:
            assert p.stdout is not None
            assert p.stdout.readline() == b"ready\n"
            p.send_signal(signal.SIGUSR1)
            assert p.stdout.readline() == b"first\n"
            p.send_signal(signal.SIGUSR1, to_all=True)
            assert sorted(p.stdout.read().split()) == [b"first", b"second"]
        if other is not None:
            assert other.poll() is None
            other.kill()
            other.wait()


_QUEUE = """
import ctypes, errno, os
rt = ctypes.CDLL(None if hasattr(ctypes.CDLL(None), "mq_open") else "librt.so.1", use_errno=True)
queue = rt.mq_open(b"/q", os.O_CREAT | os.O_RDWR, 0o600, None)
assert queue >= 0 or ctypes.get_errno() == errno.ENOSYS, os.strerror(ctypes.get_errno())
print(queue < 0 or os.listdir("/dev/mqueue") == ["q"] and rt.mq_send(queue, b"word", 4, 0) == 0)
"""


@needs("program:/usr/bin/python3")
@pytest.mark.parametrize("options", [{}, {"read_only": True}, {"user": 0}, {"security": "strict"}], ids=str)
def test_message_queues_of_posix_work_and_belong_to_the_container_alone(options: dict[str, Any]) -> None:
    for _ in range(2):
        with Container(**options) as c:
            done = c.exec(["/usr/bin/python3", "-c", _QUEUE], text=True)
            assert done.stdout == "True\n", done.stderr
