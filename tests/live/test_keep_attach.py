"""Being attached to a program that outlives its command, and letting go of it."""

from __future__ import annotations

import os
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Iterator

import pytest

from sandbox import BrokenError, UsageError, keep
from sandbox.cli import attach
from sandbox.keep import Attachment, Kept
from tests.live.test_cli import Session
from tests.live.test_keep import COMMAND, Cli, halt, sleeper
from tests.live.test_keep import cli as cli  # noqa: PLC0414 - fixtures
from tests.live.test_keep import store as store  # noqa: PLC0414
from tests.support import needs, patience

pytestmark = [needs("userns")]


class OnTerminal(Session):
    command = ()


@pytest.fixture
def session(store: object) -> Iterator[type[Session]]:
    made: list[Session] = []

    class Kept(OnTerminal):
        def __init__(self, *arguments: str, rows: int = 30, columns: int = 90) -> None:
            super().__init__(*arguments, rows=rows, columns=columns)
            made.append(self)

    yield Kept
    for each in made:
        each.close()


def attached(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*COMMAND, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def say(client: subprocess.Popen[bytes], line: bytes) -> None:
    assert client.stdin is not None
    client.stdin.write(line)
    client.stdin.flush()


def expect(client: subprocess.Popen[bytes], line: bytes) -> None:
    assert client.stdout is not None
    assert client.stdout.readline() == line, client.stderr and client.stderr.read()


def await_attached(count: int) -> None:
    """Wait until somebody has been attached to something so many times."""
    for event in keep.events(0):
        count -= event.action == "attach"
        if not count:
            return


def read_to_end(last: Attachment) -> None:
    while last.result is None:
        list(last.read())


ECHO = "trap 'echo bye >&2; exit 3' TERM; while :; do if read -r line; then echo got $line; fi; done"


def test_who_is_attached_types_reads_and_sends_signals_and_another_one_comes_after_him(cli: Cli) -> None:
    cli("run", "-d", "-i", "--name", "web", "--", "sh", "-c", ECHO)
    with attached("attach", "--sig-proxy=false", "web") as first:
        say(first, b"one\n")
        expect(first, b"got one\n")
        first.terminate()
        assert first.wait(patience(30)) == -signal.SIGTERM
    with attached("attach", "web") as second, attached("attach", "--no-stdin", "web") as reader:
        await_attached(3)
        say(second, b"two\n")
        expect(second, b"got two\n")
        expect(reader, b"got two\n")
        assert second.stdin is not None
        second.stdin.close()  # the end of what one of them types is not the end of its input
        second.stdin = None
        with keep.find("web").attach() as third:
            assert third.input is not None
            os.write(third.input, b"three\n")
            seen = b""
            while seen != b"got three\n":
                seen += b"".join(record.data for record in third.read())
        expect(reader, b"got three\n")
        second.send_signal(signal.SIGTERM)
        _, said = second.communicate(timeout=patience(30))
        assert (second.returncode, said) == (3, b"bye\n")
        assert reader.wait(patience(30)) == 3


def test_on_a_terminal_the_keys_let_go_of_it(cli: Cli, session: type[Session]) -> None:
    cli("run", "-d", "-i", "-t", "--name", "web", "--", "sh", "-c", "while read -r a; do stty size; echo got $a; test $a != end || exit 5; done")
    s = session("attach", "web")
    s.type(b"one\r")
    s.expect(b"30 90\r\ngot one")
    s.type(b"tw\x10o\r")  # the first of the keys alone is typed like any other
    s.expect(b"got tw")
    s.type(b"\x10\x11")
    s.expect(b"read escape sequence")
    s.must_end(0)
    assert termios.tcgetattr(s.slave) == s.before
    assert keep.find("web").status == "running"
    other = session("attach", "--detach-keys", "a,ctrl-b", "web", rows=20)
    other.type(b"again\r")
    other.expect(b"20 90\r\ngot again")
    other.process.send_signal(signal.SIGTERM)  # of setsid; the terminal's own hang-up is the next one
    other.process.wait(patience(30))
    last = session("attach", "--detach-keys", "a,ctrl-b", "web")
    last.type(b"end\r")
    last.expect(b"got end")
    last.must_end(5)


def test_a_terminal_is_as_before_when_a_signal_ends_who_is_attached(cli: Cli) -> None:
    cli("run", "-d", "-i", "-t", "--name", "web", "--", "sh", "-c", "while read -r a; do echo got $a; done")
    ours, theirs = os.openpty()
    before = termios.tcgetattr(theirs)
    with subprocess.Popen([*COMMAND, "attach", "web"], stdin=theirs, stdout=theirs, stderr=theirs) as client:
        os.write(ours, b"one\n")
        seen = b""
        while b"got one" not in seen:
            seen += os.read(ours, 4096)
        assert termios.tcgetattr(theirs) != before
        client.terminate()
        assert client.wait(patience(30)) == 128 + signal.SIGTERM
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)
    assert keep.find("web").status == "running"


def test_exec_on_a_terminal_goes_on_without_us_after_the_keys(session: type[Session]) -> None:
    kept = sleeper()
    s = session("exec", "-it", "web", "sh", "-c", "echo ready; read a; head -c 300000 /dev/zero | tr '\\0' '\\n'; echo done >/tmp/done; sleep 900")
    s.expect(b"ready")
    s.type(b"go\r\x10\x11")
    s.expect(b"read escape sequence")
    s.must_end(0)
    deadline = time.monotonic() + patience(30)
    while not kept.exec(["test", "-s", "/tmp/done"]).ok:
        assert time.monotonic() < deadline


def test_start_attaches_from_the_first_byte_on_and_gives_the_exit_code(cli: Cli) -> None:
    cli("run", "-d", "-i", "--name", "web", "--", "sh", "-c", "echo first; read a; echo got $a; exit 4")
    kept = keep.find("web")
    kept.stop(0)
    with attached("start", "-a", "-i", "web") as client:
        expect(client, b"first\n")
        say(client, b"it\n")
        expect(client, b"got it\n")
        assert client.wait(patience(30)) == 4
    assert "multiple" in cli("start", "-a", "web", "web", code=1)


def test_what_does_not_run_is_attached_to_by_nobody(cli: Cli) -> None:
    kept = sleeper()
    assert "--detach-keys" in cli("attach", "--detach-keys", "ctrl-p,what", "web", code=1)
    with kept.attach() as empty:
        assert (empty.input, empty.terminal) == (None, None)
        with pytest.raises(UsageError, match="no terminal"):
            empty.resize(1, 1)
        thread = threading.Thread(target=kept.stop, args=(0,))
        thread.start()
        while empty.result is None:
            list(empty.read())
        thread.join()
    assert "stopped container" in cli("attach", "web", code=1)
    kept.remove()
    assert "no container" in cli("attach", "web", code=1)


@pytest.mark.needs("cgroup:memory")
def test_what_is_paused_is_attached_to_by_nobody(cli: Cli) -> None:
    kept = sleeper(memory="32M")
    kept.pause()
    assert "paused container" in cli("attach", "web", code=1)
    kept.resume()


def test_who_is_attached_is_told_that_the_keeper_is_stopped_or_dead(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = sleeper()
    keeper = kept.config.keeper
    monkeypatch.setattr(attach, "_LOOK_MS", 10)
    check, calls = Attachment.check, list[Kept]()

    def stopping(self: Attachment) -> None:
        check(self)
        calls.append(kept)
        halt(keeper)

    monkeypatch.setattr(Attachment, "check", stopping)
    assert "is stopped" in cli("attach", "--no-stdin", "web", code=1)
    assert len(calls) == 1
    os.kill(keeper, signal.SIGCONT)
    with kept.attach() as last:
        os.kill(keeper, signal.SIGKILL)
        with pytest.raises(BrokenError):
            read_to_end(last)
