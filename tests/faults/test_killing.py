"""SIGKILL, while the launcher or an init is about to make a call: the embedding process, the launcher, or init dies right then."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.cases import Case, Outcome, Scenario, begin
from tests.faults.faulty import Action, Call, Faulty, Role
from tests.faults.scenarios import SCENARIOS
from tests.leak.snapshot import descendants
from tests.support import needs, patience

pytestmark = [needs("userns", "program:gcc"), pytest.mark.unprivileged, pytest.mark.timeout(900)]

REACH_S = patience(10.0)


def embedding(case: Case, faulty: Faulty) -> Iterator[int]:
    yield case.pid


def launcher(case: Case, faulty: Faulty) -> Iterator[int]:
    if faulty.launcher:
        yield faulty.launcher


def init(case: Case, faulty: Faulty) -> Iterator[int]:
    """Whatever the launcher has cloned, and goes on under init's name or still under the launcher's."""
    for pid in descendants(faulty.launcher) if faulty.launcher else ():
        if re.search(r"^NSpid:.*\t1$", _status(pid), re.MULTILINE):
            yield pid


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""


VICTIMS = {"embedding": embedding, "launcher": launcher, "init": init}


def kill_at(faulty: Faulty, scenario: Scenario, call: Call, victims: Callable[[Case, Faulty], Iterator[int]]) -> Outcome:
    """Kill the victims while *call* is about to be made."""
    faulty.ask(Action.WAIT, call.role, call.number)
    case = begin(scenario, faulty)
    deadline = time.monotonic() + REACH_S
    while not faulty.has_reached and not case.has_ended and time.monotonic() < deadline:
        time.sleep(0.0005)
    for pid in list(victims(case, faulty)):
        os.kill(pid, signal.SIGKILL)
    faulty.go_on()
    return case.outcome()


@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_any_step_leaves_nothing_and_is_a_typed_error(name: str, victim: str, faulty: Faulty, trace: Callable[[Scenario], list[Call]]) -> None:
    found: list[str] = []
    calls = trace(SCENARIOS[name])
    assert len(calls) > 50 or name != "plain"  # what it tries the others leave out
    for call in calls:
        if victim == "init" and call.role in (Role.STARTER, Role.HELPER):
            continue  # there is none, or it is not the helper's
        if kill_at(faulty, SCENARIOS[name], call, VICTIMS[victim]).complaints:  # a machine with other work may be slow once
            outcome = kill_at(faulty, SCENARIOS[name], call, VICTIMS[victim])
            found += [f"{call.role.name} #{call.number} {call.text}: {complaint}" for complaint in outcome.complaints]
    assert not found, "\n".join(found)
