"""The command line, as a black box: what a shell sees of it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import needs, patience

pytestmark = [needs("userns"), pytest.mark.unprivileged]
COMMAND = [sys.executable, "-m", "sandbox"]


def cli(*arguments: str | Path, stdin: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    environ = {**os.environ, **(env or {})}
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=patience(60), env=environ)


def run(*arguments: str | Path, stdin: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return cli("run", *arguments, stdin=stdin, env=env)


def output(*arguments: str | Path, stdin: str = "", env: dict[str, str] | None = None) -> str:
    done = run(*arguments, stdin=stdin, env=env)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


# ---- Streams and exit codes ----


def test_streams_and_exit_code_are_the_programs() -> None:
    done = run("--", "sh", "-c", "cat; echo err >&2; exit 7", stdin="in\n")
    assert (done.stdout, done.stderr, done.returncode) == ("in\n", "err\n", 7)


def test_the_program_has_our_own_descriptors(tmp_path: Path) -> None:
    with (tmp_path / "in").open("wb+") as source, (tmp_path / "out").open("wb+") as target:
        source.write(b"12345")
        source.seek(1)
        subprocess.run([*COMMAND, "run", "sh", "-c", "head -c 2 >&2"], stdin=source, stderr=target, check=True)
        # The offsets are shared: what was read and written there has moved ours.
        assert (os.lseek(target.fileno(), 0, os.SEEK_CUR), (tmp_path / "out").read_bytes()) == (2, b"23")


def test_closed_standard_streams_are_empty_ones() -> None:
    script = f"{sys.executable} -m sandbox run -- sh -c 'cat; echo out; exit 5' <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", script], check=False, timeout=patience(60)).returncode == 5


def test_no_interactive_means_empty_input() -> None:
    assert output("--no-interactive", "cat", stdin="secret") == ""


def test_a_reader_that_leaves_ends_the_program() -> None:
    script = f"{{ {sys.executable} -m sandbox run -- yes; echo $? >&2; }} | head -1"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=patience(60))
    assert (done.stdout, done.stderr) == ("y\n", f"{128 + signal.SIGPIPE}\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["true"], 0),
        (["--timeout", "0.2", "--", "sleep", "9"], 124),
        (["--timeout", "200ms", "--", "sleep", "9"], 124),
        (["--", "sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["--", "sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL),
        (["--profile", "strict", "--", "unshare", "--user", "true"], 128 + signal.SIGSYS),
        (["--output-limit", "1K", "--", "yes"], 128 + signal.SIGXFSZ),
        (["--", "no-such-program"], 127),
        (["--", "/no/such/program"], 127),
        (["--", "/etc/passwd"], 126),
        (["--memory", "lots", "--", "true"], 125),
        (["--cpus", "many", "--", "true"], 125),
        (["--cpus", "-1", "--", "true"], 125),
        (["--volume", "x", "--", "true"], 125),
        (["--volume", "/no/such/source:/x", "--", "true"], 125),
        (["--root", "/no/such/root", "--", "true"], 125),
        (["--network", "bridge", "--", "true"], 125),
        (["--user", "no-such-user", "--", "true"], 125),
        (["--env-file", "/no/such/file", "--", "true"], 125),
        (["--json", "/no/such/directory/file", "--", "true"], 125),
        (["--", ""], 125),
        (["--no-such-option", "--", "true"], 2),
        (["--memory"], 2),
        ([], 2),
    ],
)
def test_exit_codes(arguments: list[str], code: int) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    if code in (2, 125, 126, 127):
        assert done.stderr.startswith("sandbox run: ")
        assert done.stderr.count("\n") == 1, "a complaint is one line"


@needs("root", "cgroup:memory", "cgroup:cpuacct")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--memory", "16M", "--", "sh", "-c", "x=x; while :; do x=$x$x; done"], 137),
        (["--cpu-time", "0.2", "--", "sh", "-c", "while :; do :; done"], 128 + signal.SIGXCPU),
    ],
)
def test_exit_codes_of_limits_on_a_control_group(arguments: list[str], code: int) -> None:
    assert run(*arguments).returncode == code


def test_output_up_to_the_limit_is_passed_on() -> None:
    done = run("--output-limit", "1000", "--", "sh", "-c", "yes | head -c 100000")
    assert done.stdout == "y\n" * 500
    assert run("--output-limit", "4", "--", "sh", "-c", "printf abcd; printf ef >&2; exit 3").returncode == 3


def test_too_much_output_is_told_of_a_program_that_has_ended_by_itself() -> None:
    done = run("--output-limit", "4", "--report", "--", "sh", "-c", "printf abcdef")
    assert (done.returncode, done.stdout) == (128 + signal.SIGXFSZ, "abcd")
    assert '"output limit"' in done.stderr


def test_a_complaint_cannot_write_to_the_terminal() -> None:
    done = run("--", "/no/\x1b[31mred")
    assert "\x1b" not in done.stderr
    assert "red" in done.stderr


# ---- Options ----


def test_docker_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("shown\n")
    (tmp_path / "file").chmod(0o644)
    tmp_path.chmod(0o755)
    options = ["-e", "A=b", "-w", "/tmp", "-h", "box", "-v", f"{tmp_path}/file:/mnt/file:ro", "--tmpfs", "/extra:size=1M,mode=755"]
    done = run(*options, "--", "sh", "-c", "echo $A; pwd; hostname; cat /mnt/file; df -k /extra | tail -1; echo x > /mnt/file")
    lines = done.stdout.splitlines()
    assert lines[:4] == ["b", "/tmp", "box", "shown"]
    assert lines[4].split()[1] == "1024"
    assert "Read-only" in done.stderr
    assert (tmp_path / "file").read_text() == "shown\n"


def test_mount_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("shown\n")
    tmp_path.chmod(0o755)
    options = ["--mount", f"type=bind,src={tmp_path},dst=/mnt/x,readonly", "--mount", "type=tmpfs,target=/mnt/y,tmpfs-size=64K,tmpfs-mode=1777"]
    assert output(*options, "sh", "-c", "cat /mnt/x/file; echo y > /mnt/y/f; cat /mnt/y/f; df -k /mnt/y | tail -1 | cut -d' ' -f1-") .startswith("shown\ny\n")
    assert run(*options, "touch", "/mnt/x/new").returncode == 1
    assert run("--mount", "type=npipe,target=/x", "true").returncode == 125


def test_variables_follow_docker(tmp_path: Path) -> None:
    (tmp_path / "vars").write_text("# comment\n\nA=from file\nB=kept = x\nPASSED\nNOT_THERE\n")
    options = ["--env-file", tmp_path / "vars", "--env", "A=over", "-e", "ALSO"]
    shown = output(*options, "env", env={"PASSED": "yes", "ALSO": "1", "SECRET": "no"}).splitlines()
    assert {"A=over", "B=kept = x", "PASSED=yes", "ALSO=1"} <= set(shown)
    assert not any(line.startswith(("SECRET", "NOT_THERE")) for line in shown)


def test_options_end_at_the_program() -> None:
    assert output("echo", "--memory", "-e", "--", "x") == "--memory -e -- x\n"
    assert output("--", "echo", "-n", "--", "x") == "-- x"


def test_writable_places() -> None:
    assert output("sh", "-c", "echo x > /tmp/f && cat /tmp/f") == "x\n"
    assert run("--read-only", "touch", "/tmp/f").returncode == 1
    assert output("--scratch", "1M", "-w", "/home/sandbox", "sh", "-c", "echo x > f && cat f") == "x\n"


@needs("program:busybox")
def test_root_is_a_directory_that_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    busybox = subprocess.run(["sh", "-c", "command -v busybox"], capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / "bin" / "sh").write_bytes(Path(busybox).read_bytes())
    (tmp_path / "bin" / "sh").chmod(0o755)
    tmp_path.chmod(0o755)
    assert output("--root", tmp_path, "sh", "-c", "echo new > /new; read a < /new; echo $a") == "new\n"
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
    assert run("--root", tmp_path, "--read-only", "sh", "-c", "echo new > /new").returncode == 1


def test_ulimit_user_and_shm() -> None:
    script = "ulimit -Sn; ulimit -Hn; ulimit -c; id -u; df -k /dev/shm | tail -1"
    lines = output("--ulimit", "nofile=64:128", "--ulimit", "core=0", "--user", "1000", "--shm-size", "1M", "sh", "-c", script).splitlines()
    assert lines[:4] == ["64", "128", "0", "1000"]
    assert lines[4].split()[1] == "1024"


def test_networks() -> None:
    names = "cut -d: -f1 -s /proc/net/dev | tr -d ' '"
    assert output("sh", "-c", names).split() == ["lo"]
    assert output("--network", "none", "sh", "-c", names).split() == ["lo"]
    ours = {line.partition(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]}
    assert set(output("--network", "host", "sh", "-c", names).split()) == ours


def test_security_options() -> None:
    flags = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | cut -f2"
    assert output("sh", "-c", flags).split() == ["1", "2"]
    assert output("--security-opt", "seccomp=unconfined", "sh", "-c", flags).split() == ["1", "0"]
    assert output("--security-opt", "no-new-privileges=false", "sh", "-c", "grep NoNewPrivs: /proc/self/status | cut -f2").split() == ["0"]
    bounding = "grep CapBnd: /proc/self/status | cut -f2"
    assert int(output("sh", "-c", bounding), 16) == 0
    assert int(output("--cap-add", "CHOWN", "sh", "-c", bounding), 16) == 1
    assert run("--cap-add", "NOTHING", "true").returncode == 125


@needs("user")
def test_best_effort_warns_where_strictness_fails() -> None:
    strict = run("--memory", "64M", "true")
    if strict.returncode == 0:
        pytest.skip("this user has a delegated control group")
    assert strict.returncode == 125
    done = run("--memory", "64M", "--best-effort", "true")
    assert done.returncode == 0
    assert "warning" in done.stderr


# ---- Reports and plans ----


def test_explain_prints_the_plan_and_starts_nothing() -> None:
    done = run("--explain", "--timeout", "3", "--", "no-such-program")
    assert done.returncode == 0
    assert "Pivot(" in done.stdout
    assert "limit timeout = 3 s" in done.stdout
    assert run("--explain").returncode == 0


def test_json_goes_to_a_file(tmp_path: Path) -> None:
    done = run("--json", tmp_path / "report", "--", "sh", "-c", "echo out; exit 3")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "", 3)
    report = json.loads((tmp_path / "report").read_text())
    assert (report["status"], report["exit_code"], report["command_exit_code"], report["argv"][0]) == ("exited", 3, 3, "sh")
    assert report["wall_time"] > 0


def test_json_tells_of_a_program_that_did_not_start(tmp_path: Path) -> None:
    assert run("--json", tmp_path / "report", "--", "no-such-program").returncode == 127
    report = json.loads((tmp_path / "report").read_text())
    assert (report["status"], report["command_exit_code"], report["error"]["kind"]) == ("not started", 127, "ProgramNotFoundError")


@needs("root", "cgroup:memory")
def test_report_tells_what_was_used() -> None:
    report = json.loads(run("--memory", "64M", "--report", "--", "true").stderr)
    assert report["memory_peak"] > 0


# ---- Signals ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_forwarded(number: signal.Signals) -> None:
    script = f"trap 'echo got it; exit 3' {number.name.removeprefix('SIG')}; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen([*COMMAND, "run", "--", "sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "got it\n"
        assert process.wait() == 3


def test_a_signal_that_the_program_does_not_catch_ends_both() -> None:
    with subprocess.Popen([*COMMAND, "run", "sh", "-c", "echo ready; exec sleep 60"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait() == 128 + signal.SIGTERM


def test_ctrl_c_reaches_what_a_shell_waits_for() -> None:
    began = time.monotonic()
    with subprocess.Popen([*COMMAND, "run", "sh", "-c", "echo ready; sleep 60; echo after"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == ""
        assert process.wait() == 128 + signal.SIGINT
    assert time.monotonic() - began < patience(30)


# ---- Terminals ----


class Session:
    """`sandbox run`, or another *command*, on a terminal of its own, whose other end we hold."""

    command: tuple[str, ...] = ("run",)

    def __init__(self, *arguments: str, rows: int = 30, columns: int = 90) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        command = [*COMMAND, *self.command, *arguments]
        # A session of its own, with the terminal as the controlling one, as under a shell.
        wrapper = ["setsid", "--ctty", "--wait", *command]
        self.process = subprocess.Popen(wrapper, stdin=self.slave, stdout=self.slave, stderr=self.slave)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def expect(self, text: bytes) -> None:
        deadline = time.monotonic() + patience(30)
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come; there was {self.seen!r}"
            self.seen += os.read(self.master, 65536)
        self.seen = self.seen.partition(text)[2]

    def must_end(self, *codes: int) -> None:
        code = self.process.wait(patience(30))
        os.set_blocking(self.master, False)
        with contextlib.suppress(BlockingIOError):
            self.seen += os.read(self.master, 65536)
        assert code in codes, self.seen

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def session() -> Iterator[type[Session]]:
    made: list[Session] = []

    class Kept(Session):
        def __init__(self, *arguments: str, rows: int = 30, columns: int = 90) -> None:
            super().__init__(*arguments, rows=rows, columns=columns)
            made.append(self)

    yield Kept
    for each in made:
        each.close()


def test_a_terminal_in_a_terminal(session: type[Session]) -> None:
    s = session("-it", "--", "sh", "-c", "tty; stty size; read a; echo got $a; exit 4")
    s.expect(b"/dev/pts/")
    s.expect(b"30 90")
    assert termios.tcgetattr(s.slave) != s.before, "ours is raw while the program runs"
    s.type(b"word\r")
    s.expect(b"got word")
    s.must_end(4)
    assert termios.tcgetattr(s.slave) == s.before


def test_a_change_of_size_reaches_the_program(session: type[Session]) -> None:
    s = session("-t", "--", "sh", "-c", "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done")
    s.expect(b"ready")
    s.resize(40, 100)
    s.expect(b"40 100")
    s.type(b"\x03")
    s.must_end(128 + signal.SIGINT)


def test_ctrl_c_is_the_programs_and_ours_is_restored(session: type[Session]) -> None:
    s = session("-t", "--", "sh", "-c", "trap 'echo caught; exit 6' INT; echo ready; while :; do sleep 0.05; done")
    s.expect(b"ready")
    s.type(b"\x03")
    s.expect(b"caught")
    s.must_end(6)
    assert termios.tcgetattr(s.slave) == s.before


@pytest.mark.parametrize("arguments", [["-t", "--", "no-such-program"], ["-t", "--timeout", "0.3", "--", "sleep", "60"]])
def test_the_terminal_is_restored_after_a_failure(session: type[Session], arguments: list[str]) -> None:
    s = session(*arguments)
    s.must_end(124, 127)
    assert termios.tcgetattr(s.slave) == s.before


def test_a_large_paste_does_not_block(session: type[Session]) -> None:
    # The program echoes all of it, and its terminal takes 4 KiB at once: both directions are full in between.
    s = session("-t", "--", "sh", "-c", "stty raw -echo; echo ready; head -c 200000 | tee /dev/tty | wc -c; exit 0")
    s.expect(b"ready")
    rest = b"x" * 200000
    os.set_blocking(s.master, False)
    deadline = time.monotonic() + patience(60)
    while b"200000" not in s.seen and time.monotonic() < deadline:
        readable, writable, _ = select.select([s.master], [s.master] if rest else [], [], 1)
        if readable:
            s.seen = (s.seen + os.read(s.master, 65536))[-100:]
        if writable:
            rest = rest[os.write(s.master, rest[:4096]) :]
    assert b"200000" in s.seen
    s.must_end(0)


@pytest.mark.parametrize("typed", ["typed\n", "no end of line: typed", ""])
def test_tty_takes_input_from_a_pipe(typed: str) -> None:
    done = run("-t", "--", "sh", "-c", "test -t 0 && test -t 1 && cat && echo typed", stdin=typed)
    assert done.returncode == 0
    assert "typed" in done.stdout


@needs("program:bash")
def test_the_end_of_input_ends_an_interactive_shell() -> None:
    done = run("-it", "--", "bash", "--norc", "-i", stdin="")
    assert done.returncode == 0, done


# ---- The other commands ----


def test_doctor_tries_a_container() -> None:
    done = cli("doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    assert report["works"] is True
    assert (report["findings"][-1]["section"], report["findings"][-1]["state"]) == ("trial", "ok")
    assert all(finding["remedy"] for finding in report["findings"] if finding["state"] == "missing")
    sections = {finding["section"] for finding in report["findings"]}
    assert sections == {"kernel", "user namespaces and ids", "control groups", "networks", "limits in force", "noise in measurements", "trial"}


def test_doctor_in_words() -> None:
    done = cli("doctor")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("The default container works here")


@needs("root")
def test_doctor_fails_where_no_container_works() -> None:
    # In a user namespace that may have no further ones.
    script = f"echo 0 > /proc/sys/user/max_user_namespaces && exec {sys.executable} -m sandbox doctor --json"
    done = subprocess.run(["unshare", "--user", "--map-root-user", "sh", "-c", script], capture_output=True, text=True, check=False, timeout=patience(60))
    assert done.returncode == 1, done
    report = json.loads(done.stdout)
    found = {finding["what"]: finding for finding in report["findings"]}
    assert report["works"] is False
    assert found["user.max_user_namespaces"]["value"].startswith("0")
    assert "sysctl" in found["user namespaces"]["remedy"]


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["run", "--help"], 0), (["doctor", "--help"], 0), (["--version"], 0), ([], 2), (["fly"], 2), (["doctor", "x"], 2)])
def test_help_and_wrong_commands(arguments: list[str], code: int) -> None:
    done = cli(*arguments)
    assert done.returncode == code
    assert (done.stdout if code == 0 else done.stderr).startswith(("usage: sandbox", "sandbox"))
