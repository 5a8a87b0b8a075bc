"""What is left of containers that outlive their command when somebody on either side is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

import pytest
from attrs import evolve

from sandbox import BrokenError, ContainerNotFoundError, NameInUseError, keep
from sandbox.keep import ContainerStore
from tests.leak.snapshot import descendants
from tests.live.test_keep import COMMAND, Cli, await_end_of, follow_until, is_alive, left, sleeper
from tests.live.test_keep import cli as cli  # noqa: PLC0414 - fixtures
from tests.live.test_keep import store as store  # noqa: PLC0414
from tests.support import needs, patience

pytestmark = [needs("userns"), pytest.mark.unprivileged]


def test_a_keeper_that_is_killed_takes_its_container_along_and_is_swept(cli: Cli, store: ContainerStore) -> None:
    kept, removed = sleeper("web"), sleeper("other", remove=True)
    programs = [kept.state.init, removed.state.init]
    process = kept.popen(["sleep", "996"], fds=(2, 2, 2))
    for each in (kept, removed):
        os.kill(each.config.keeper, signal.SIGKILL)
        await_end_of(each.config.keeper)
    with pytest.raises(BrokenError):
        process.wait()
    process.close()
    for pid in programs:
        await_end_of(pid)
    assert kept.status == "dead"
    assert "Dead" in cli("ps", "-a")
    assert "keeper" in cli("exec", "web", "true", code=125)
    assert kept.logs() == b""
    with pytest.raises(BrokenError):
        kept.start()
    sleeper("web2").remove(force=True)  # whoever starts one sweeps those that were to be removed
    assert [found.name for found in keep.containers()] == ["web"]
    with pytest.raises(NameInUseError):  # a dead one still has its name
        sleeper("web")
    assert cli("rm", "web") == "web\n"
    assert left(store) == []


def test_one_whose_keeper_was_killed_this_moment_is_removed_by_force(store: ContainerStore) -> None:
    for _ in range(8):
        kept = keep.start(["sleep", "995"])
        os.kill(kept.config.keeper, signal.SIGKILL)  # its lock is left a moment after its files
        kept.remove(force=True)
    assert left(store) == []


def test_a_keeper_that_is_told_to_end_stops_its_container() -> None:
    kept = keep.start(["sh", "-c", "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done"], name="web")
    follow_until(kept, b"ready")
    init, keeper = kept.state.init, kept.config.keeper
    os.kill(keeper, signal.SIGHUP)
    assert kept.exec(["true"]).ok  # a terminal that is closed is nothing to it
    os.kill(keeper, signal.SIGTERM)
    await_end_of(keeper)
    await_end_of(init)
    assert (kept.status, kept.logs()) == ("dead", b"ready\nbye\n")
    kept.remove()


def test_an_init_that_is_killed_is_a_dead_container() -> None:
    kept = sleeper("web")
    keeper = kept.config.keeper
    os.kill(kept.state.init, signal.SIGKILL)
    await_end_of(keeper)
    assert kept.status == "dead"
    assert kept.state.error
    kept.remove()


def test_who_is_killed_while_he_starts_one_leaves_nothing_or_one(store: ContainerStore) -> None:
    for delay in (0.0, 0.1, 0.2, 0.4):
        with subprocess.Popen([*COMMAND, "run", "-d", "--name", "web", "--", "sleep", "1000"], stdout=subprocess.DEVNULL) as client:
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(delay)
            client.kill()
        deadline = time.monotonic() + patience(60)
        while not all(_is_running_or_gone(kept) for kept in keep.containers()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for kept in keep.containers():
            keeper = kept.config.keeper
            kept.remove(force=True)
            await_end_of(keeper)


def _is_running_or_gone(kept: keep.Kept) -> bool:
    try:
        return kept.status == "running"
    except ContainerNotFoundError:  # its keeper has taken it back since it was listed
        return True


def test_a_wait_that_is_broken_off_costs_the_keeper_nothing() -> None:
    kept = sleeper("web")
    keeper = kept.config.keeper
    assert kept.exec(["true"]).ok  # what it takes for the first one, the container keeps for the next
    threads = len(os.listdir(f"/proc/{keeper}/task"))
    fds = len(os.listdir(f"/proc/{keeper}/fd"))
    for _ in range(5):
        with kept._connect() as client:
            client.send(b'{"do":"wait"}')
    assert kept.exec(["true"]).ok
    deadline = time.monotonic() + patience(30)
    while (len(os.listdir(f"/proc/{keeper}/task")), len(os.listdir(f"/proc/{keeper}/fd"))) > (threads, fds):
        assert time.monotonic() < deadline
        kept.exec(["true"])


def test_who_starts_one_has_no_child_of_it() -> None:
    kept = sleeper("web")
    assert is_alive(kept.config.keeper)
    assert kept.config.keeper not in descendants(os.getpid())


def test_nothing_hangs_on_a_keeper_that_is_stopped_and_force_removes_it(
    cli: Cli, store: ContainerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox.keep._waiting.FIRST_LOOK_S", 0.2)
    kept = sleeper("web")
    keeper, program = kept.config.keeper, kept.state.init
    os.killpg(keeper, signal.SIGSTOP)  # its launcher, which is the janitor, too
    began = time.monotonic()
    for words in (["stop", "web"], ["rm", "web"], ["logs", "-f", "web"]):
        assert "kill -CONT" in cli(*words, code=1)
    assert "kill -CONT" in cli("exec", "web", "true", code=125)
    assert "web" in cli("ps")
    assert cli("rm", "-f", "web") == "web\n"
    assert time.monotonic() - began < patience(60)
    await_end_of(keeper)
    await_end_of(program)
    assert left(store) == []


def test_a_keeper_that_goes_on_answers_who_has_waited(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that was asked whether it lives, while a program ran for longer than anybody waits without looking."""
    monkeypatch.setattr("sandbox.keep._waiting.FIRST_LOOK_S", 0.01)
    kept = sleeper("web")
    assert kept.exec(["sleep", "0.5"]).ok
    assert cli("stop", "-t", "0", "web") == "web\n"


def test_one_that_stays_behind_and_writes_without_end_keeps_no_keeper(cli: Cli) -> None:
    kept = keep.start(["sh", "-c", "yes & sleep 0.2"], name="loud", log_size=1 << 19)
    assert kept.wait().ok
    assert cli("rm", "loud") == "loud\n"


def test_who_has_the_number_of_a_keeper_elsewhere_is_not_killed_for_it(store: ContainerStore) -> None:
    """A keeper of another pid namespace that takes no connections: its number, as it is written down, is somebody else's here."""
    kept = sleeper("web")
    config = kept.config
    innocent = subprocess.Popen(["sleep", "60"])
    try:
        os.rename(f"{store.path}/{kept.id}/socket", f"{store.path}/{kept.id}/elsewhere")
        with store.open(kept.id) as place:
            place.write(evolve(config, keeper=innocent.pid))
            with pytest.raises(BrokenError, match="pid namespace"):
                kept.remove(force=True)
            assert innocent.poll() is None
            place.write(config)
        kept.remove(force=True)
        await_end_of(config.keeper)
    finally:
        innocent.kill()
        innocent.wait()
    assert left(store) == []
