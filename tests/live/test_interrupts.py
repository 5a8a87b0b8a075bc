"""Ctrl-C at any moment: the caller gets it soon, nothing is left alive, and the next call works."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from typing import Any

import pytest

import sandbox
from sandbox import PIPE, Container, _spares
from sandbox._launch import driver
from sandbox._pump import Pump
from sandbox.process import Process
from tests.support import import_path, needs, patience

pytestmark = [needs("userns"), pytest.mark.usefixtures("no_leftovers")]
POINTS = 40  # of each scenario
SOON_S = patience(10.0)


@pytest.mark.parametrize("scenario", ["execute", "start", pytest.param("limit", marks=needs("cgroup:memory", "cgroup:pids")), "once", "talk"])
def test_an_interrupt_anywhere_is_soon_the_callers_and_leaves_nothing_alive(scenario: str) -> None:
    command = [sys.executable, "-W", "ignore::ResourceWarning", "-m", "tests.live.interrupting", scenario, str(POINTS)]
    environment = {**os.environ, "PYTHONPATH": import_path()}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience(60), env=environment)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def once_interrupted(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    """Have the next call of a method interrupted when it is done."""
    method = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        method(*arguments, **named)
        monkeypatch.setattr(owner, name, method)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, call)


def test_an_interrupt_after_the_programs_end_has_come_neither_waits_for_it_nor_costs_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    with Container() as container:
        once_interrupted(monkeypatch, Pump, "run")
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            container.exec(["true"])
        assert time.monotonic() - began < SOON_S
        assert container.exec(["true"]).ok


def test_so_it_is_when_two_programs_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    with Container() as container:
        once_interrupted(monkeypatch, Pump, "finish")
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            sandbox.interact(sandbox.Party(container, ["true"]), sandbox.Party(container, ["true"]))
        assert time.monotonic() - began < SOON_S
        assert container.exec(["true"]).ok


def test_an_end_that_an_interrupt_has_swallowed_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with Container() as container, container.popen(["sh", "-c", "exit 3"]) as program:
        once_interrupted(monkeypatch, Process, "_next_end")
        with pytest.raises(KeyboardInterrupt):
            program.wait()
        assert program.wait(SOON_S).exit_code == 3


def test_the_launchers_pid_is_not_lost_with_an_interrupt() -> None:
    launcher = driver.Launcher.start()
    try:
        launcher._sock.settimeout(SOON_S)
        pid = launcher.own_pid
        launcher._own_pid = 0
        assert launcher.own_pid == pid
    finally:
        launcher.close()


@needs("cgroup:memory")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what is forgotten is closed with a ResourceWarning
def test_a_program_that_is_started_and_forgotten_costs_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_spares, "PER_KIND", 0)

    def descriptors() -> int:
        sandbox.shut_down()
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    with Container(memory="64M") as container:
        container.exec(["true"])
    before = descriptors()
    for _ in range(5):
        with Container(memory="64M") as container:
            container.popen(["sleep", "60"], stdout=PIPE)
    del container
    assert descriptors() <= before
