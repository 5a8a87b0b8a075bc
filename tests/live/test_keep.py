"""Containers that outlive the command that started them: their lives, and what is left when somebody on either side is killed."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from sandbox import BrokenError, ContainerNotFoundError, NameInUseError, ProgramNotFoundError, Status, UsageError, keep
from sandbox._sys import calls
from sandbox.cli import main
from sandbox.keep import ContainerStore, Kept
from sandbox.keep._wire import MAX_MESSAGE
from tests.support import needs, patience

pytestmark = [needs("userns"), pytest.mark.unprivileged]

COMMAND = (sys.executable, "-m", "sandbox")


@pytest.fixture(autouse=True)
def store(no_leftovers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[ContainerStore]:
    """A place of its own for containers, which is empty at the end, with no keeper left."""
    monkeypatch.setenv("SANDBOX_CONTAINERS", str(tmp_path / "containers"))
    store = ContainerStore()
    yield store
    for pid in remove_all():
        await_end_of(pid)
    store.sweep()
    assert not os.path.exists(store.path) or left(store) == []


def left(store: ContainerStore) -> list[str]:
    """What is there beside the log of events, which stays."""
    return sorted(set(os.listdir(store.path)) - {"events.0", "events.1"})


def remove_all() -> list[int]:
    """Remove every container; gives their keepers, which end now."""
    keepers: list[int] = []
    for kept in keep.containers():
        with contextlib.suppress(UsageError):
            keepers.append(kept.config.keeper)
        with contextlib.suppress(ContainerNotFoundError):  # it has gone by itself since
            kept.remove(force=True)
    return keepers


def await_end_of(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    with contextlib.suppress(ProcessLookupError):
        fd = calls.pidfd_open(pid)
        try:
            assert select.select([fd], [], [], patience(10))[0], f"{pid} lives"
        finally:
            os.close(fd)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


Cli = Callable[..., str]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """The command line, in this process."""

    def run(*words: str, code: int = 0) -> str:
        capfd.readouterr()
        done = main(list(words))
        said = capfd.readouterr()
        assert done == code, said
        return said.out + said.err

    return run


def sleeper(name: str = "web", **options: object) -> Kept:
    return keep.start(["sleep", "1000"], name=name, **options)  # type: ignore[arg-type]


def follow_until(kept: Kept, word: bytes) -> None:
    """Wait until the log has *word*."""
    seen = b""
    for record in kept.records(follow=True):
        seen += record.data
        if word in seen:
            return
    raise AssertionError(seen)


def halt(pid: int) -> None:
    """Stop a process, and wait until each of its threads is."""
    os.kill(pid, signal.SIGSTOP)
    deadline, states = time.monotonic() + patience(30), set[str]()
    while states != {"T"}:
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError):  # a thread that has just ended
            states = {path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")}


# ---- Lives ----


def test_the_network_of_another_one_is_shared_by_root_and_an_ordinary_user_is_told_what_to_do(cli: Cli) -> None:
    sleeper("web")
    said = cli("run", "--network", "container:web", "--", "true", code=125 if os.geteuid() else 0)
    assert os.geteuid() == 0 or "sandbox network create" in said


def test_a_program_outlives_the_command_that_started_it_and_is_stopped_and_started_again(cli: Cli, store: ContainerStore) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo out; echo err >&2; while :; do sleep 0.05; done"
    ident = cli("run", "-d", "--name", "web", "--label", "app=shop", "--", "sh", "-c", script).strip()
    assert len(ident) == 64
    kept = keep.find("web")
    assert (kept.id, kept.status, kept.name, kept.config.labels) == (ident, "running", "web", {"app": "shop"})
    follow_until(kept, b"err")
    assert is_alive(kept.state.init)
    session = Path(f"/proc/{kept.config.keeper}/stat").read_text().rpartition(")")[2].split()
    assert (int(session[1]) != os.getpid(), int(session[3])) == (True, kept.config.keeper)
    assert os.readlink(f"/proc/{kept.config.keeper}/cwd") == "/"
    kept.stop()
    assert kept.status == "exited"
    assert kept.result is not None
    assert (kept.result.status, kept.result.exit_code) == (Status.EXITED, 3)
    assert sorted((record.stream, record.data) for record in kept.records()) == [(1, b"bye\n"), (1, b"out\n"), (2, b"err\n")]
    kept.start()
    kept.start()  # it runs already
    assert (kept.status, kept.state.runs) == ("running", 2)
    with pytest.raises(UsageError, match="running"):
        kept.remove()
    kept.remove(force=True)
    with pytest.raises(ContainerNotFoundError):
        kept.start()
    assert left(store) == []


def test_what_was_written_stays_over_a_stop() -> None:
    kept = keep.start(["sh", "-c", "cat /tmp/x; date >/tmp/x; echo done"], name="web", scratch=1 << 20)
    first = kept.wait()
    kept.start()
    second = kept.wait()
    assert (first.ok, second.ok) == (True, True)
    assert kept.logs().count(b"done") == 2
    assert kept.logs().count(b"No such file") == 1


def test_commands_say_what_docker_says(cli: Cli) -> None:
    sleeper("web", labels={"app": "shop"})
    quick = keep.start(["sh", "-c", "exit 4"], name="quick")
    quick.wait()
    lines = cli("ps").splitlines()
    assert lines[0].split("  ")[0] == "CONTAINER ID"
    assert (len(lines), lines[1].split()[-1], "Up " in lines[1]) == (2, "web", True)
    rows = [json.loads(line) for line in cli("ps", "-a", "--format", "json", "--no-trunc").splitlines()]
    assert [(row["Names"], row["State"]) for row in rows] == [("quick", "exited"), ("web", "running")]
    assert rows[0]["Status"].startswith("Exited (4) ")
    assert rows[0]["ID"] == quick.id
    for words, found in [
        (["--filter", "name=we"], ["web"]), (["--filter", "label=app"], ["web"]), (["--filter", "label=app=x"], []),
        (["--filter", "status=exited"], ["quick"]), (["--filter", "exited=4"], ["quick"]), (["-a", "--filter", f"id={quick.id[:5]}"], ["quick"]),
    ]:  # fmt: skip
        assert [json.loads(line)["Names"] for line in cli("ps", "--format", "json", *words).splitlines()] == found
    (told,) = json.loads(cli("inspect", "quick"))
    assert (told["Name"], told["State"]["Status"], told["State"]["ExitCode"], told["Path"], told["Args"]) == ("quick", "exited", 4, "sh", ["-c", "exit 4"])
    assert cli("wait", "quick") == "4\n"
    assert cli("rename", "quick", "slow") == ""
    assert keep.find("slow").id == quick.id
    assert "Deleted Containers:" in cli("container", "prune", "-f")
    assert [kept.name for kept in keep.containers()] == ["web"]
    assert cli("restart", "-t", "0", "web") == "web\n"
    assert cli("kill", "-s", "TERM", "web") == "web\n"
    assert cli("wait", "web") == "143\n"
    assert "is not running" in cli("exec", "web", "true", code=125)
    assert "is not running" in cli("kill", "web", code=1)
    assert cli("rm", "web") == "web\n"


def test_what_cannot_be_started_says_why_and_leaves_nothing(cli: Cli, store: ContainerStore) -> None:
    assert "nothing-like-this" in cli("run", "-d", "--name", "web", "nothing-like-this", code=127)
    assert "/usr" in cli("run", "-d", "/usr", code=126)
    assert cli("run", "-d", "--network", "container:nobody", "true", code=125).startswith("sandbox run: ")
    with pytest.raises(ProgramNotFoundError):
        keep.start(["nothing-like-this"], name="web")
    with pytest.raises(UsageError, match="belongs to this"):
        keep.start(["true"], mounts=[threading.Lock()])
    assert left(store) == []


def test_a_name_is_one_containers_and_who_has_it_is_told(cli: Cli) -> None:
    kept = sleeper("web")
    with pytest.raises(NameInUseError, match=kept.id[:12]) as caught:
        sleeper("web")
    assert caught.value.owner == kept.id
    assert kept.id[:12] in cli("run", "-d", "--name", "web", "true", code=125)
    assert kept.status == "running"


def test_one_that_is_to_be_removed_goes_with_its_program(store: ContainerStore) -> None:
    kept = keep.start(["sh", "-c", "read x; exit 5"], name="web", remove=True)  # its input is empty: it may end before we look
    with contextlib.suppress(ContainerNotFoundError, BrokenError):
        assert kept.wait().exit_code == 5
    sleeping = sleeper("other", remove=True)
    keeper = sleeping.config.keeper
    waiting: list[int | None] = []

    def wait() -> None:
        with contextlib.suppress(ContainerNotFoundError, BrokenError):  # it may be gone before we are told
            waiting.append(sleeping.wait().signal)

    thread = threading.Thread(target=wait)
    thread.start()
    sleeping.stop()
    thread.join()
    await_end_of(keeper)
    assert waiting in ([signal.SIGTERM], [])
    assert [name for name in os.listdir(store.path) if "other" in name] == []


def test_a_terminal_is_the_log() -> None:
    kept = keep.start(["sh", "-c", "test -t 0 && test -t 1 && echo yes"], name="web", tty=True)
    kept.wait()
    assert kept.logs() == b"yes\r\n"


def test_a_terminal_that_all_have_closed_for_a_moment_goes_on_to_be_the_log() -> None:
    script = "exec 3<&0; t=$(readlink /proc/self/fd/0); echo one; exec </dev/null >/dev/null 2>&1 3<&-; sleep 0.2; echo two >$t; exec sleep 0.1 >$t"
    kept = keep.start(["sh", "-c", script], name="web", tty=True)
    kept.wait()
    assert kept.logs() == b"one\r\ntwo\r\n"


def test_deadlines_are_those_of_a_run(cli: Cli) -> None:
    kept = keep.start(["sleep", "1000"], name="web", timeout=0.1)
    assert kept.wait().status is Status.TIMEOUT
    assert json.loads(cli("inspect", "web"))[0]["State"]["ExitCode"] == 124


@pytest.mark.needs("cgroup:memory", "cgroup:pids")
def test_a_container_is_paused_and_says_what_it_uses(cli: Cli) -> None:
    kept, free = sleeper("web", memory="64M", pids=32), sleeper("free")
    assert cli("pause", "web") == "web\n"
    assert "(Paused)" in cli("ps", "--filter", "status=paused")
    assert "paused" in cli("exec", "web", "true", code=125)
    assert "already" in cli("pause", "web", code=1)
    assert cli("unpause", "web") == "web\n"
    assert "not paused" in cli("unpause", "web", code=1)
    (row,) = map(json.loads, cli("stats", "--no-stream", "--format", "json", "web").splitlines())
    assert (row["Name"], row["PIDs"], row["MemUsage"].endswith("B")) == ("web", "1", True)
    assert json.loads(cli("stats", "--no-stream", "--format", "json", "free"))["PIDs"] == "1"  # also without limits
    assert (cli("pause", "free"), cli("unpause", "free")) == ("free\n", "free\n")
    kept.pause()
    kept.stop(0)  # whoever is stopped goes on first
    assert (kept.status, free.status) == ("exited", "running")


# ---- Programs beside ----


def test_exec_has_streams_environment_user_and_exit_code(cli: Cli) -> None:
    sleeper("web")
    done = subprocess.run(
        [*COMMAND, "exec", "-i", "-e", "A=b", "-w", "/usr", "web", "sh", "-c", "cat; pwd; echo $A; echo err >&2; exit 7"],
        input=b"in\n", capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (7, b"in\n/usr\nb\n", b"err\n")
    assert cli("exec", "web", "cat") == ""  # without -i: empty
    assert "no-such" in cli("exec", "web", "no-such", code=127)
    assert cli("exec", "-t", "web", "sh", "-c", "test -t 1 && echo yes") == "yes\r\n"
    assert cli("exec", "-d", "web", "sleep", "999") == ""
    assert "sleep 999" in cli("exec", "web", "sh", "-c", "tr '\\0' ' ' </proc/[3-9]*/cmdline || cat /proc/*/cmdline | tr '\\0' ' '")


def test_a_signal_to_exec_is_the_programs() -> None:
    sleeper("web")
    script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    with subprocess.Popen([*COMMAND, "exec", "web", "sh", "-c", script], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"ready\n"
        client.send_signal(signal.SIGTERM)
        assert client.wait(patience(10)) == 9


def test_a_client_that_is_killed_in_mid_exec_takes_its_program_along_and_nobody_else() -> None:
    kept = sleeper("web")
    reader, writer = os.pipe()
    with subprocess.Popen([*COMMAND, "exec", "web", "sh", "-c", "echo ready; exec sleep 998"], stdout=writer) as client:
        os.close(writer)
        assert os.read(reader, 99) == b"ready\n"
        client.kill()
    assert os.read(reader, 1) == b""  # the program, which had the other end, is gone
    os.close(reader)
    assert kept.status == "running"
    assert kept.exec(["true"]).ok


def test_the_end_of_the_program_is_the_end_of_all() -> None:
    kept = sleeper("web")
    reader, writer = os.pipe()
    process = kept.popen(["sleep", "997"], fds=(writer, writer, writer))
    os.close(writer)
    kept.kill()
    assert kept.wait().status in (Status.KILLED, Status.SIGNALED)
    assert process.wait().signal == signal.SIGKILL
    process.close()
    assert os.read(reader, 1) == b""
    os.close(reader)


# ---- Many at once, and hostile ones ----


def test_many_clients_at_once(store: ContainerStore) -> None:
    kept, said, faults = sleeper("web"), [], []

    def work(number: int) -> None:
        try:
            reader, writer = os.pipe()
            said.append((kept.exec(["sh", "-c", f"echo {number}; exit {number}"], stdout=writer).exit_code, os.read(reader, 9)))
            os.close(reader)
            os.close(writer)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert sorted(said) == [(number, b"%d\n" % number) for number in range(12)]


def test_starts_stops_and_removals_at_once_end_in_one_state(store: ContainerStore) -> None:
    kept, faults = sleeper("web"), []

    def work(number: int) -> None:
        try:
            for _ in range(3):
                (kept.start, lambda: kept.stop(0), kept.kill, kept.start)[number % 4]()
        except UsageError:
            pass  # not running, or there no more
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert kept.status in ("running", "exited")
    removed: list[BaseException | None] = []

    def remove() -> None:
        try:
            kept.remove(force=True)
            removed.append(None)
        except (ContainerNotFoundError, UsageError) as error:
            removed.append(error)

    threads = [threading.Thread(target=remove) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None in removed
    assert left(store) == []


def test_endless_output_has_a_bound_and_hurts_nobody(cli: Cli, store: ContainerStore) -> None:
    bound = 1 << 18
    kept = keep.start(["sh", "-c", "exec yes 0123456789"], name="loud", log_size=bound)
    directory = Path(store.path, kept.id)
    for number, _ in enumerate(kept.records(follow=True)):
        if number > 200:
            break
    began = time.monotonic()
    assert kept.exec(["true"]).ok
    kept.stop(patience(60))
    assert time.monotonic() - began < patience(30)
    assert sum(path.stat().st_size for path in directory.glob("log.*")) <= bound
    assert 0 < len(kept.logs()) <= bound
    assert cli("logs", "--tail", "2", "loud").splitlines()[-2] in ("0123456789", "456789")


def test_logs_are_followed_to_the_end() -> None:
    kept = keep.start(["sh", "-c", "mkfifo /tmp/go; echo one; read x </tmp/go; echo two; printf three"], name="web", scratch=1 << 20)
    with subprocess.Popen([*COMMAND, "logs", "-f", "web"], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"one\n"
        kept.exec(["sh", "-c", "echo >/tmp/go"])  # which may be killed at its end: the program's is the end of all
        assert client.stdout.read() == b"two\nthree"
    assert kept.status == "exited"
    assert [record.data for record in kept.records(last=1)] == [b"three"]


def test_a_client_that_says_nothing_keeps_nobody() -> None:
    kept = sleeper("web")
    silent = [kept._connect() for _ in range(5)]
    stuck = kept._connect()
    stuck.send(b'{"do":"follow"}')
    assert kept.exec(["true"]).ok
    kept.stop(0)
    kept.start()
    for client in (*silent, stuck):
        client.close()


def test_nonsense_is_answered_by_an_error_or_not_at_all_and_its_descriptors_are_closed() -> None:
    kept = sleeper("web")
    for raw in (b"x", b"{}", b'{"do":"nothing"}', b'{"do":"stop","timeout":"x"}', b"[" * 60_000, b"x" * (MAX_MESSAGE + 1)):
        with kept._connect() as client:
            client.send(raw)
            answer = client.recv(9999)
        assert answer == b"" or b"ProtocolError" in answer
        assert kept.status == "running"
    reader, writer = os.pipe()
    with kept._connect() as client:
        socket.send_fds(client, [b'{"do":"diff"}'], [writer, writer])
        os.close(writer)
        assert b"ProtocolError" in client.recv(9999)
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_names_and_words_of_strangers_do_not_steer_the_terminal(cli: Cli) -> None:
    keep.start(["sh", "-c", ": \x1b[31m; printf '\\033[31m'"], name="web", labels={"a": "\x1b[2J"}).wait()
    assert "\x1b" not in cli("ps", "-a", "--no-trunc")
    assert "\x1b" not in cli("inspect", "web")
    assert cli("logs", "web") == "\x1b[31m"


def test_what_runs_inside_does_not_see_the_place_of_containers(store: ContainerStore) -> None:
    kept = sleeper("web")
    assert kept.exec(["test", "-e", store.path]).exit_code == 1
    assert kept.exec(["sh", "-c", "test -S /run/sandbox || test -e /run/sandbox"]).exit_code == 1
    reader, writer = os.pipe()
    kept.exec(["sh", "-c", "ls -l /proc/self/fd | grep -c ' -> '"], stdout=writer)
    os.close(writer)
    assert int(os.read(reader, 99)) <= 5  # 0, 1, 2, and what ls has open itself
    os.close(reader)
