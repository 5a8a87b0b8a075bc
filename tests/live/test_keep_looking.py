"""Looking at containers that outlive their command: ``sandbox ps``, ``inspect``, ``logs``, and what goes on in them: ``stats`` and ``top``."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from sandbox import Bind, SetupError, Tmpfs, keep
from sandbox.cli import figures
from sandbox.keep import ContainerStore, Kept
from tests.live.test_keep import COMMAND, Cli, follow_until, halt, sleeper
from tests.live.test_keep import cli as cli  # noqa: PLC0414 - fixtures
from tests.live.test_keep import store as store  # noqa: PLC0414
from tests.support import needs, patience

pytestmark = [needs("userns")]


def test_without_a_descriptor_to_look_with_that_is_said(store: ContainerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper("web")

    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        for look in (keep.containers, lambda: keep.find("web")):
            with pytest.raises(SetupError, match="EMFILE"):
                look()


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
    halt(stopped.config.keeper)
    said = cli("stats", "stopped", "other", code=1)
    assert (asked.count(stopped.id), asked.count(other.id)) == (1, 3)
    assert said.count("is stopped") == 1
    for rows in shown:
        assert [(row["Name"], row["MemUsage"].startswith("--")) for row in rows] == [("stopped", True), ("other", False)]


def test_processes_are_listed_as_the_host_sees_them_without_asking_the_keeper(cli: Cli) -> None:
    script = "sleep 901 & (setsid sleep 902 & exec sleep 0) ; sh -c 'sleep 903; :' \"$(printf '\\033[1mbold')\" & echo ready; wait"
    kept = keep.start(["sh", "-c", script], name="web")
    follow_until(kept, b"ready")
    deadline = time.monotonic() + patience(30)
    while True:  # they begin in whatever order, and one has to lose its parent
        rows = [line.split(None, 7) for line in cli("top", "web").splitlines()]
        parents = {row[7]: row[2] for row in rows if row[7].startswith("sleep")}
        if sorted(parents) == ["sleep 901", "sleep 902", "sleep 903"] and parents["sleep 902"] == str(kept.state.init):
            break
        assert time.monotonic() < deadline, rows
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


def test_they_are_listed_by_what_they_are_of_and_when_they_were_made(cli: Cli, tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        keep.start(["sh", "-c", "sleep 1000"], name=name, mounts=[Bind(tmp_path, f"/{name}", read_only=True), Tmpfs("/run")])
    keep.find("third").stop(0)

    def names(*words: str) -> list[str]:
        return cli("ps", "--format", "{{.Names}}", *words).split()

    assert names() == ["second", "first"]
    assert names("-l") == ["third"]
    assert names("-n", "2") == ["third", "second"]
    assert names("-a", "-f", "before=third") == ["second", "first"]
    assert names("-a", "-f", "since=first") == ["third", "second"]
    assert names("-a", "-f", "volume=/first", "-f", "volume=/third") == ["third", "first"]
    assert names("-f", "network=none") == ["second", "first"]
    assert names("-f", "network=shop") == names("-f", "ancestor=debian") == names("-f", "publish=80") == []
    assert "is none of created, running" in cli("ps", "-f", "status=up", code=2)
    assert "is none of starting" in cli("ps", "-f", "health=good", code=2)
    assert "no container 'nobody'" in cli("ps", "-f", "since=nobody", code=1)
    assert cli("ps", "--format", "table {{.Names}}\\t{{.Command}}").splitlines()[0].split() == ["NAMES", "COMMAND"]
    assert """"sh -c 'sleep 1000'\"""" in cli("ps", "--no-trunc")


def test_what_is_known_is_shown_by_a_template(cli: Cli, tmp_path: Path) -> None:
    keep.start(["sleep", "1000"], name="web", labels={"app": "shop"}, mounts=[Bind(tmp_path, "/in", read_only=True)])
    assert cli("inspect", "-f", "{{.Name}} {{.State.Running}} {{.Config.Labels.app}} {{.RestartCount}}", "web") == "web true shop 0\n"
    assert cli("inspect", "-f", "{{range .Mounts}}{{.Type}} {{.Source}}:{{.Destination}} {{.RW}}{{end}}", "web") == f"bind {tmp_path}:/in false\n"
    assert json.loads(cli("inspect", "--format", "json", "web"))[0]["Name"] == "web"
    said = cli("inspect", "-f", "{{.Name}}", "nobody", "web", code=1)
    assert "web\n" in said
    assert "no container 'nobody'" in said
    assert "no .Nope; there are Status, Running" in cli("inspect", "-f", "{{.State.Nope}}", "web", code=1)


def test_a_log_is_shown_from_a_time_to_another(cli: Cli) -> None:
    kept = keep.start(["sh", "-c", "echo early; read x; echo late; sleep 1000"], name="web", interactive=True)
    follow_until(kept, b"early")
    (early,) = kept.records()
    between = f"{early.time_ns // 10**9 + 1}"
    while time.time() < float(between):  # times have whole seconds here
        pass
    with kept.attach() as attached:
        assert attached.input is not None
        os.write(attached.input, b"\n")
        follow_until(kept, b"late")
    assert cli("logs", "--since", between, "web") == "late\n"
    assert cli("logs", "--until", between, "web") == "early\n"
    assert cli("logs", "--since", "1h", "web") == "early\nlate\n"
    assert "goes with no --follow" in cli("logs", "-f", "--until", "1h", "web", code=1)
    assert "--since" in cli("logs", "--since", "tomorrow", "web", code=1)
    assert cli("rm", "-fv", "web") == "web\n"
