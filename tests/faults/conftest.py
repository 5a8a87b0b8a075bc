"""The launcher with faults, built once; and cases as fixtures."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

import sandbox
from tests.faults.cases import Scenario, begin, own_orphans
from tests.faults.faulty import Action, Call, Faulty

ALL = bool(os.environ.get("SANDBOX_FAULTS_ALL"))


@pytest.fixture(scope="session")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Faulty:
    return Faulty.build(tmp_path_factory.mktemp("faults"))


@pytest.fixture(autouse=True)
def prepared() -> Iterator[None]:
    """What there is once per process is there, so that a case cannot be taken to have left it; and cases inherit no launcher."""
    sandbox.run(["true"])
    sandbox.shut_down()
    with own_orphans():
        yield


@pytest.fixture(scope="session")
def tried_by() -> dict[object, Scenario]:
    """Which scenario it is that tries a place in the sources: the first that comes to it."""
    return {}


@pytest.fixture
def trace(faulty: Faulty, tried_by: dict[object, Scenario]) -> Callable[[Scenario], list[Call]]:
    """The calls that a scenario makes: each place in the sources once for each role, by one scenario, or (SANDBOX_FAULTS_ALL=1) all of them."""

    def calls(scenario: Scenario) -> list[Call]:
        faulty.ask(Action.NONE)
        outcome = begin(scenario, faulty).outcome()
        assert not outcome.complaints, outcome.complaints
        assert not outcome.error, outcome.message
        found = faulty.calls()
        first: dict[object, Call] = {}
        for call in found:
            first.setdefault((call.role, call.text), call)
        return found if ALL else [call for place, call in first.items() if tried_by.setdefault(place, scenario) is scenario]

    return calls
