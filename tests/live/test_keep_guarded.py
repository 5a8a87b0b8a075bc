"""Containers that outlive their command against programs that want more than they were given, and clients that are too many."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from sandbox import UsageError, keep
from sandbox.keep import ContainerStore
from sandbox.keep._service import MOST, Service
from tests.live.test_keep import COMMAND, Cli, sleeper
from tests.live.test_keep import cli as cli  # noqa: PLC0414 - fixtures
from tests.live.test_keep import store as store  # noqa: PLC0414
from tests.support import needs, patience

pytestmark = [needs("userns"), pytest.mark.unprivileged]


def test_a_program_that_is_run_in_one_has_no_descriptor_of_the_callers() -> None:
    """What stays in the container could be handed it, and would go on reading what is typed at this terminal."""
    sleeper("web")
    ours, theirs = pty.openpty()
    look = "for fd in 0 1 2; do readlink /proc/self/fd/$fd; done"
    with subprocess.Popen([*COMMAND, "exec", "-i", "web", "sh", "-c", look], stdin=theirs, stdout=theirs, stderr=theirs) as client:
        assert client.wait(patience(60)) == 0
    os.close(theirs)
    text = b""
    with contextlib.suppress(OSError):  # EIO: all has been read
        while data := os.read(ours, 4096):
            text += data
    os.close(ours)
    said = text.decode().splitlines()
    assert len(said) == 3
    assert all(line.startswith("pipe:") for line in said)


def test_streams_of_exec_are_passed_on_whole_and_in_order() -> None:
    sleeper("web")
    data = os.urandom(300_000)
    assert subprocess.run([*COMMAND, "exec", "-i", "web", "cat"], input=data, capture_output=True, check=True, timeout=patience(60)).stdout == data
    script = "for n in 1 2 3 4 5; do echo $n; echo $n >&2; done"
    both = subprocess.run([*COMMAND, "exec", "web", "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True)
    assert both.stdout.split() == [b"%d" % (number // 2 + 1) for number in range(10)]
    # Who reads no more is told to the program by SIGPIPE; and a program may end before it has read what it is given.
    with subprocess.Popen([*COMMAND, "exec", "web", "yes"], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.read(2) == b"y\n"
        client.stdout.close()
        assert client.wait(patience(60)) == 128 + 13
    assert subprocess.run([*COMMAND, "exec", "-i", "web", "true"], input=data, check=False, timeout=patience(60)).returncode == 0


def test_a_container_with_many_clients_is_stopped_and_removed_all_the_same(cli: Cli) -> None:
    kept = sleeper("web")
    for _ in range(MOST):
        kept.popen(["sleep", "900"], detach=True).close()
    with pytest.raises(UsageError, match="busy with"):
        kept.popen(["true"], detach=True)
    assert cli("stop", "-t", "0", "web") == "web\n"
    cli("rm", "web")


def test_the_log_of_a_program_that_never_stops_writing_is_shown_and_ends(cli: Cli) -> None:
    kept = keep.start(["yes", "0123456789"], name="loud", log_size=1 << 19)
    next(kept.records(follow=True))
    began = time.monotonic()
    assert cli("logs", "--tail", "5", "loud").count("0123456789") >= 4
    assert time.monotonic() - began < patience(30)


def test_what_is_too_long_to_be_kept_is_refused_before_anything_runs(store: ContainerStore) -> None:
    with pytest.raises(UsageError, match="are the most"):
        keep.start(["true", *["x" * 100_000] * 11])
    assert keep.containers() == []


def test_without_room_for_a_thread_the_client_goes_and_the_keeper_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    service, (ours, theirs) = Service(), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    service(None, theirs)  # type: ignore[arg-type]  # it is not asked
    with ours:
        assert ours.recv(1) == b""
    service.finish()


def test_thousands_of_orphans_are_told_to_stop_with_few_descriptors() -> None:
    script = "for n in $(seq 300); do (sleep 900 &) ; done; echo made; wait; sleep 900"
    kept = keep.start(["sh", "-c", script], name="web")
    for record in kept.records(follow=True):
        if b"made" in record.data:
            break
    keeper = kept.config.keeper
    most = len(os.listdir(f"/proc/{keeper}/fd")) + 90
    subprocess.run(["prlimit", f"--nofile={most}:{most}", "--pid", str(keeper)], check=True)
    kept.stop(timeout=patience(60))
    assert kept.status == "exited"
    assert Path(f"/proc/{keeper}").exists()
