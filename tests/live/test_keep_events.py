"""What happens to containers that outlive their command is told, in Docker's words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest

from sandbox import ProgramNotFoundError, keep
from sandbox.image import Healthcheck
from tests.live.test_keep import COMMAND, Cli, await_end_of, follow_until, sleeper
from tests.live.test_keep import cli as cli  # noqa: PLC0414 - fixtures
from tests.live.test_keep import store as store  # noqa: PLC0414
from tests.live.test_keep_health import await_health
from tests.support import needs

pytestmark = [needs("userns")]


def so_far() -> list[str]:
    return [event.action for event in keep.events(0, follow=False)]


def test_a_life_is_told_to_who_follows_and_to_who_comes_later(cli: Cli) -> None:
    since = str(time.time() - 1)
    with subprocess.Popen([*COMMAND, "events", "--since", since, "--format", "json"], stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        cli("run", "-d", "--name", "web", "--label", "shop=1", "--", "sh", "-c", "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done")
        kept = keep.find("web")
        for action in ("create", "start"):
            told = json.loads(follower.stdout.readline())
            assert (told["Action"], told["id"], told["Actor"]["Attributes"]["name"]) == (action, kept.id, "web")
        follow_until(kept, b"up")
        kept.exec(["false"])
        kept.rename("shop")
        kept.stop()
        kept.restart(0)
        kept.kill()
        kept.wait()
        kept.remove()
        actions: list[str] = []
        while actions[-1:] != ["destroy"]:
            told = json.loads(follower.stdout.readline())
            actions.append(told["Action"])
            if told["Action"] == "die" and actions.count("die") == 1:
                assert told["Actor"]["Attributes"]["exitCode"] == "3"
        follower.kill()
    wanted = ["exec_start: false", "exec_die", "rename", "die", "stop", "start", "restart", "kill", "die", "destroy"]
    assert actions == wanted
    assert so_far() == ["create", "start", *wanted]
    said = cli("events", "--since", "0", "--until", str(time.time()), "--filter", "event=rename", "--filter", "label=shop=1")
    assert f"container rename {kept.id} (" in said
    assert said.count("\n") == 1
    assert "oldName=web" in said
    assert "unknown" in cli("events", "--filter", "volume=x", code=2)


def test_restarts_health_and_what_could_not_begin_are_told() -> None:
    sick = sleeper("sick", health=Healthcheck(("CMD", "test", "-e", "/tmp/well"), interval=0.01, retries=1))
    await_health(sick, "unhealthy")
    sick.exec(["touch", "/tmp/well"])
    await_health(sick, "healthy")
    told = (event.action for event in keep.events(0) if event.action.startswith("health"))  # the state is written before
    assert [next(told), next(told)] == ["health_status: unhealthy", "health_status: healthy"]
    sick.remove(force=True)
    before = len(so_far())
    keep.start(["false"], name="again", restart="on-failure:1")
    actions: list[str] = []
    for event in keep.events(0):
        actions.append(event.action)
        if actions[before:] == ["create", "start", "die", "start", "die"]:
            break
        assert len(actions) < before + 5
    with pytest.raises(ProgramNotFoundError):
        keep.start(["/no/such"], name="none")
    assert so_far()[-2:] == ["create", "destroy"]


def test_nobody_waits_for_a_keeper_that_is_stopped_and_one_that_is_killed_is_told_by_who_removes_it(cli: Cli) -> None:
    kept = sleeper()
    keeper = kept.config.keeper
    os.kill(keeper, signal.SIGSTOP)
    assert cli("events", "--since", "0", "--until", "0s").count("container start") == 1
    os.kill(keeper, signal.SIGKILL)
    await_end_of(keeper)
    kept.remove()
    assert so_far()[-2:] == ["start", "destroy"]
