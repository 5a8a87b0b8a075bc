"""Programs that are run again when they have ended, by Docker's policies."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable

import pytest

from sandbox import UsageError, keep
from sandbox.keep import Kept, State
from tests.live.test_keep import Cli, await_end_of
from tests.live.test_keep import cli as cli  # noqa: PLC0414 - fixtures
from tests.live.test_keep import store as store  # noqa: PLC0414
from tests.support import needs, patience

pytestmark = [needs("userns"), pytest.mark.unprivileged]


def await_state(kept: Kept, is_there: Callable[[State], bool]) -> State:
    """Wait until its state is such; its keeper is asked each time, as it is the one that we wait for."""
    deadline = time.monotonic() + patience(30)
    while not is_there(state := kept.state):
        assert time.monotonic() < deadline, state
        kept._ask("ping")
    return state


def test_a_program_that_fails_is_run_so_many_times_and_leaves_nothing_in_its_keeper(cli: Cli) -> None:
    cli("run", "-d", "--name", "web", "--restart", "on-failure:3", "--", "sh", "-c", "echo run >>/tmp/runs; cat /tmp/runs | wc -l; exit 7")
    kept = keep.find("web")
    fds = f"/proc/{kept.config.keeper}/fd"
    state = await_state(kept, lambda state: state.status == "exited")
    assert (state.restarts, state.runs) == (3, 4)
    assert kept.logs().split() == [b"1", b"2", b"3", b"4"]  # over the same files
    (told,) = json.loads(cli("inspect", "web"))
    assert (told["RestartCount"], told["HostConfig"]["RestartPolicy"]) == (3, {"Name": "on-failure", "MaximumRetryCount": 3})
    assert (told["State"]["ExitCode"], told["State"]["Restarting"]) == (7, False)
    before = len(os.listdir(fds))
    kept.start()
    state = await_state(kept, lambda state: state.status == "exited")
    assert (state.restarts, state.runs) == (3, 8)
    deadline = time.monotonic() + patience(10)
    while len(os.listdir(fds)) >= before + 3:  # of the clients that have just been there
        assert time.monotonic() < deadline
    assert keep.start(["true"], name="well", restart="on-failure").wait().ok
    assert keep.find("well").status == "exited"


def test_while_it_is_to_be_restarted_it_is_shown_stopped_started_and_removed(cli: Cli) -> None:
    kept = keep.start(["sh", "-c", "exit 3"], name="web", restart="always")
    await_state(kept, lambda state: state.status == "restarting" and state.restarts > 5)  # of which the pause is 3.2 s and more
    assert "Restarting (3) " in cli("ps")
    for refused in (lambda: kept.exec(["true"]), kept.pause, kept.kill, kept.attach):
        with pytest.raises(UsageError, match="restarting"):
            refused()
    with pytest.raises(UsageError, match="restarting; stop it first"):
        kept.remove()
    kept.stop()
    state = kept.state
    assert (state.status, kept.wait().exit_code) == ("exited", 3)
    kept.start()
    await_state(kept, lambda found: found.restarts >= 2)
    assert kept.state.runs >= state.runs + 2
    kept.restart(0)
    await_state(kept, lambda found: found.status == "restarting")
    kept.remove(force=True)


def test_what_stops_a_program_keeps_it_from_being_restarted_and_another_signal_does_not() -> None:
    kept = keep.start(["sleep", "1000"], name="web", restart="unless-stopped")
    kept.kill(signal.SIGHUP)
    await_state(kept, lambda state: state.status == "running" and state.restarts == 1)
    for stop in (lambda: kept.stop(0), kept.kill, lambda: kept.kill(signal.SIGTERM)):
        stop()
        kept.wait()
        assert kept.status == "exited"
        kept.start()
        assert kept.status == "running"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_keeper_that_ends_restarts_nothing(number: int) -> None:
    kept = keep.start(["false"], name="web", restart="always")
    await_state(kept, lambda state: state.restarts >= 2)
    keeper = kept.config.keeper
    os.kill(keeper, number)
    await_end_of(keeper)
    assert kept.status == "dead"
    kept.remove()


def test_policies_that_make_no_sense_are_refused(cli: Cli) -> None:
    assert "--restart and --rm" in cli("run", "-d", "--rm", "--restart", "always", "true", code=125)
    assert "on-failure" in cli("run", "-d", "--restart", "sometimes", "true", code=125)
    assert "only with --detach" in cli("run", "--restart", "always", "true", code=125)
    assert cli("ps", "-a", "-q") == ""
