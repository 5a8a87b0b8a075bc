"""Health checks of containers that outlive their command, by Docker's rules and in its words."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox import UsageError, keep
from sandbox.image import Healthcheck
from sandbox.keep import Kept
from tests.live.test_keep import Cli, sleeper
from tests.live.test_keep import cli as cli  # noqa: PLC0414 - fixtures
from tests.live.test_keep import store as store  # noqa: PLC0414
from tests.live.test_keep_files import image as image  # noqa: PLC0414
from tests.support import needs, patience

pytestmark = [needs("userns"), pytest.mark.unprivileged]


def await_health(kept: Kept, status: str) -> dict[str, object]:
    """Wait until it has that status; what `inspect` shows. Its keeper is asked each time: that is what we wait for."""
    deadline = time.monotonic() + patience(30)
    while (found := kept.state.health or {}).get("Status") != status:
        assert time.monotonic() < deadline, found
        kept._ask("ping")  # a program in it may take long while a check fills its memory
    return found


def test_a_program_is_healthy_and_unhealthy_and_healthy_again(cli: Cli) -> None:
    options = ["--health-cmd", "echo looked; test ! -e /tmp/ill", "--health-interval", "20ms", "--health-retries", "2"]
    cli("run", "-d", "--name", "web", *options, "--", "sleep", "1000")
    kept = keep.find("web")
    await_health(kept, "healthy")
    assert "(healthy)" in cli("ps")
    kept.exec(["touch", "/tmp/ill"])
    found = await_health(kept, "unhealthy")
    assert isinstance(found["FailingStreak"], int)
    assert found["FailingStreak"] >= 2
    assert "(unhealthy)" in cli("ps", "--filter", "health=unhealthy")
    assert cli("ps", "-q", "--filter", "health=healthy") == ""
    kept.exec(["rm", "/tmp/ill"])
    await_health(kept, "healthy")
    (told,) = json.loads(cli("inspect", "web"))
    log = told["State"]["Health"]["Log"]
    assert (len(log) in (4, 5), set(log[-1]), log[-1]["Output"]) == (True, {"Start", "End", "ExitCode", "Output"}, "looked\n")
    assert told["Config"]["Healthcheck"]["Test"] == ["CMD-SHELL", options[1]]
    assert told["Config"]["Healthcheck"]["Interval"] == 20_000_000
    kept.stop(0)
    assert kept.state.health is not None
    assert kept.state.health["Status"] == "unhealthy"
    kept.start()
    await_health(kept, "healthy")


def test_a_check_that_takes_too_long_or_is_not_there_is_a_failure_and_is_told() -> None:
    slow = sleeper("slow", health=Healthcheck(("CMD", "sleep", "900"), interval=0.01, timeout=0.05, retries=1))
    missing = sleeper("missing", health=Healthcheck(("CMD", "/no/such"), interval=0.01, retries=1, start_period=900))
    log = await_health(slow, "unhealthy")["Log"]
    assert "exceeded timeout (0.05s)" in str(log)
    assert "'ExitCode': -1" in str(log)
    deadline = time.monotonic() + patience(30)
    while "no such program" not in str(missing.state.health):
        assert time.monotonic() < deadline
        missing.exec(["true"])
    assert missing.state.health is not None
    assert (missing.state.health["Status"], missing.state.health["FailingStreak"]) == ("starting", 0)  # in its start period


def outcomes(kept: Kept) -> list[dict[str, object]]:
    return (kept.state.health or {})["Log"]


ATTACK = "(setsid sleep 1000 &); (trap '' TERM; yes) & head -c 1000M /dev/zero | tail & f() { f | f & }; f; kill -STOP $$; exit 1"


@pytest.mark.needs("cgroup:memory", "cgroup:pids")
def test_a_check_that_floods_forks_hangs_and_fills_memory_harms_neither_keeper_nor_program() -> None:
    check = Healthcheck(("CMD-SHELL", ATTACK), interval=0.01, timeout=0.3, retries=3)
    kept = sleeper(health=check, memory="64M", pids=32)
    before = os.listdir(f"/proc/{kept.config.keeper}/task")
    found = await_health(kept, "unhealthy")
    assert len(json.dumps(found)) < 40_000
    assert kept.status == "running"
    deadline = time.monotonic() + patience(10)
    while len(os.listdir(f"/proc/{kept.config.keeper}/task")) > len(before) + 2:  # that of the check, and of whoever asks
        assert time.monotonic() < deadline
    memory = next(line for line in Path(f"/proc/{kept.config.keeper}/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert int(memory.split()[1]) < 80_000, memory


@pytest.mark.needs("cgroup:memory")
def test_a_check_that_a_pause_has_interrupted_says_nothing() -> None:
    check = Healthcheck(("CMD-SHELL", "echo >/tmp/began; sleep 0.2"), interval=0.001, timeout=3, retries=1)
    kept = sleeper(health=check, memory="64M")
    await_health(kept, "healthy")
    kept.exec(["sh", "-c", "rm -f /tmp/began; while ! test -e /tmp/began; do :; done"])
    kept.pause()
    select.select([], [], [], 3.1)  # so that its time is over
    kept.resume()
    ends = {str(outcome["End"]) for outcome in outcomes(kept)}
    deadline = time.monotonic() + patience(30)
    while ends >= {str(outcome["End"]) for outcome in outcomes(kept)}:
        assert time.monotonic() < deadline
        kept.exec(["true"])
    assert {outcome["ExitCode"] for outcome in outcomes(kept)} == {0}


@pytest.mark.needs("program:busybox", "overlay")
def test_the_check_of_an_image_is_honoured_changed_and_left_out(cli: Cli, image: Callable[..., None]) -> None:
    image("app", cmd=("sleep", "1000"), healthcheck=Healthcheck(("CMD", "test", "-e", "/d/one"), interval=0.02))
    cli("run", "-d", "--name", "web", "--image", "app")
    await_health(keep.find("web"), "healthy")
    cli("run", "-d", "--name", "slow", "--health-interval", "1m30s", "--image", "app")
    assert "(health: starting)" in cli("ps", "--filter", "name=slow")
    (told,) = json.loads(cli("inspect", "slow"))
    assert (told["Config"]["Healthcheck"]["Interval"], told["Config"]["Healthcheck"]["Test"][0]) == (90 * 10**9, "CMD")
    cli("run", "-d", "--name", "none", "--no-healthcheck", "--image", "app")
    assert keep.find("none").state.health is None


def test_health_options_that_make_no_sense_are_refused(cli: Cli, tmp_path: Path) -> None:
    assert "conflicts" in cli("run", "-d", "--no-healthcheck", "--health-cmd", "x", "true", code=125)
    assert "nothing to check with" in cli("run", "-d", "--health-interval", "1s", "true", code=125)
    for words in (["--health-interval", "1x"], ["--health-timeout", "5"], ["--health-retries", "-1"], ["--health-start-period", "1us"]):
        assert words[0] in cli("run", "-d", "--health-cmd", "true", *words, "true", code=125)
    assert "only with --detach" in cli("run", "--health-cmd", "true", "true", code=125)
    with pytest.raises(UsageError, match="CMD-SHELL"):
        sleeper("web", health=Healthcheck(("CMD",)))
