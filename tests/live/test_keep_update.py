"""What a container that outlives its command may use, and whether it is run again, is changed while it runs."""

from __future__ import annotations

import json

import pytest

from sandbox import Container, Limits, Status, UsageError, keep
from tests.live.test_keep import Cli, sleeper
from tests.live.test_keep import cli as cli  # noqa: PLC0414 - fixtures
from tests.live.test_keep import store as store  # noqa: PLC0414
from tests.live.test_keep_restarts import await_state
from tests.support import needs

pytestmark = [needs("userns"), pytest.mark.unprivileged]


@pytest.mark.needs("cgroup:memory", "cgroup:pids")
def test_limits_of_a_live_container_are_changed_and_hold(no_leftovers: None) -> None:
    fork = "n=0; while [ $n -lt 8 ]; do sleep 9 & n=$((n+1)); done; echo all"
    with Container(memory="32M", pids=64) as c:
        assert c.exec(["sh", "-c", fork]).stdout == b"all\n"
        c.update(Limits(pids=4))
        assert b"all" not in c.exec(["sh", "-c", fork]).stdout
        fill = ["sh", "-c", "head -c 40M /dev/zero | tail -c 40M | wc -c"]
        c.update(Limits(pids=64))
        assert c.exec(fill).oom_killed
        c.update(Limits(memory="256M"))
        assert c.exec(fill).stdout == b"41943040\n"
        c.update(Limits(memory="16M"))
        assert c.exec(fill).status is Status.MEMORY_LIMIT
    with Container() as c:
        c.update(Limits(pids=4))
        assert c._live().group().in_force().pids == 4
        with pytest.raises(UsageError, match="no limit of cpu to change"):
            c.update(Limits(cpus=0.5))
        assert b"all" not in c.exec(["sh", "-c", fork]).stdout
    with Container() as c:
        c.exec(["true"])
        with pytest.raises(UsageError, match="no control group"):
            c.update(Limits(pids=4))


@pytest.mark.needs("cgroup:memory")
def test_update_changes_limits_and_policy_and_inspect_shows_them(cli: Cli) -> None:
    kept = sleeper(memory="32M")
    assert cli("update", "--memory", "64M", "--restart", "on-failure:2", "web") == "web\n"
    (told,) = json.loads(cli("inspect", "web"))
    assert told["HostConfig"]["Memory"] == 64 << 20
    assert told["HostConfig"]["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 2}
    assert kept.exec(["sh", "-c", "head -c 40M /dev/zero | tail -c 40M >/dev/null"]).ok
    assert "nothing is to be changed" in cli("update", "web", code=2)
    assert "more than 0" in cli("update", "--cpus", "0", "web", code=1)
    assert "restart" in cli("update", "--restart", "sometimes", "web", code=1)
    sleeper("free", remove=True)
    assert cli("update", "--memory", "64M", "free") == "free\n"
    assert json.loads(cli("inspect", "free"))[0]["HostConfig"]["Memory"] == 64 << 20
    assert "--rm" in cli("update", "--restart", "always", "free", code=1)


def test_a_policy_begins_and_ends_while_the_program_is_run_again_and_again() -> None:
    kept = keep.start(["sh", "-c", "exit 1"], name="web", restart="always")
    await_state(kept, lambda state: state.status == "restarting" and state.restarts > 2)
    kept.update(restart="no")
    assert await_state(kept, lambda state: state.status != "running").status == "exited"
    kept.update(restart="on-failure:1")
    assert kept.status == "exited"  # nobody has started it
    kept.start()
    assert await_state(kept, lambda state: state.status == "exited").restarts == 1
    assert [event.action for event in keep.events(0, follow=False)].count("update") == 2


@pytest.mark.needs("cgroup:memory", "cgroup:pids")
def test_what_is_killed_while_it_is_paused_ends(cli: Cli) -> None:
    kept = sleeper("web", memory="64M", pids=32)
    for words, code in (([], 137), (["-s", "TERM"], 143)):
        kept.start()
        kept.pause()
        assert cli("kill", "-s", "CONT", "web") == "web\n"
        assert "unpause" in cli("start", "web", code=1)
        assert kept.status == "paused"
        assert cli("kill", *words, "web") == "web\n"
        await_state(kept, lambda state: state.status == "exited")
        assert cli("wait", "web") == f"{code}\n"
