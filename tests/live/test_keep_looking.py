"""What goes on in containers that outlive their command: ``sandbox stats`` and ``sandbox top``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

import pytest

from sandbox import keep
from sandbox.cli import figures
from sandbox.keep import Kept
from tests.live.test_keep import COMMAND, Cli, follow_until, sleeper
from tests.live.test_keep import cli as cli  # noqa: PLC0414 - fixtures
from tests.live.test_keep import store as store  # noqa: PLC0414
from tests.support import needs

pytestmark = [needs("userns")]


@pytest.mark.needs("cgroup:memory", "cgroup:cpu", "cgroup:pids")
def test_figures_come_again_and_again_until_the_container_has_gone(cli: Cli) -> None:
    keep.start(["sh", "-c", "while :; do :; done"], name="web", memory="64M", cpus=0.3, pids=9)
    with subprocess.Popen([*COMMAND, "stats", "--format", "json", "web"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        assert client.stdout is not None
        first, second = (json.loads(client.stdout.readline()) for _ in range(2))
        assert (first["Name"], first["CPUPerc"], first["MemPerc"][-1]) == ("web", "--", "%")
        assert first["MemUsage"].endswith(" / 67.1MB")
        assert float(second["CPUPerc"].rstrip("%")) > 0
        keep.find("web").remove(force=True)
        _, said = client.communicate()
        assert (client.returncode, b"no container" in said) == (1, True)
    assert cli("stats", "--no-stream", "--format", "json") == ""


@pytest.mark.needs("cgroup:memory")
def test_a_keeper_that_is_stopped_keeps_nobody_from_the_figures_of_the_others(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped, other = sleeper("stopped", memory="16M"), sleeper("other", memory="16M")
    monkeypatch.setattr(figures, "EVERY_S", 0.01)
    shown: list[list[dict[str, str]]] = []

    def show(rows: list[dict[str, str]], _form: str) -> None:
        shown.append(rows)
        if len(shown) == 3:
            other.remove(force=True)
            os.kill(stopped.config.keeper, signal.SIGKILL)
            stopped.remove(force=True)

    monkeypatch.setattr(figures, "_show", show)
    ask, asked = Kept.stats, list[str]()

    def counted(kept: Kept) -> dict[str, Any]:
        asked.append(kept.id)
        return ask(kept)

    monkeypatch.setattr(Kept, "stats", counted)
    os.kill(stopped.config.keeper, signal.SIGSTOP)
    said = cli("stats", "stopped", "other", code=1)
    assert (asked.count(stopped.id), asked.count(other.id)) == (1, 3)
    assert said.count("is stopped") == 1
    for rows in shown:
        assert [(row["Name"], row["MemUsage"].startswith("--")) for row in rows] == [("stopped", True), ("other", False)]


def test_processes_are_listed_as_the_host_sees_them_without_asking_the_keeper(cli: Cli) -> None:
    script = "sleep 901 & (setsid sleep 902 & exec sleep 0) ; sh -c 'sleep 903; :' \"$(printf '\\033[1mbold')\" & echo ready; wait"
    kept = keep.start(["sh", "-c", script], name="web")
    follow_until(kept, b"ready")
    while len(said := cli("top", "web").splitlines()) < 6:  # the last shell has not begun yet
        pass
    os.kill(kept.config.keeper, signal.SIGSTOP)
    said = cli("top", "web").splitlines()
    os.kill(kept.config.keeper, signal.SIGCONT)
    assert said[0].split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    rows = [line.split(None, 7) for line in said[1:]]
    assert sorted(row[7] for row in rows if row[7].startswith("sleep")) == ["sleep 901", "sleep 902", "sleep 903"]
    assert "\033" not in "".join(said)
    by_command = {row[7]: row for row in rows}
    assert by_command["sleep 902"][2] == str(kept.state.init)  # an orphan is its init's
    assert os.path.exists(f"/proc/{by_command['sleep 901'][1]}")
    assert "not offered" in cli("top", "web", "aux", code=1)
    kept.stop(0)
    assert "not running" in cli("top", "web", code=1)
