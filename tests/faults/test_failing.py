"""Each system call of the launcher and of inits fails once: the caller gets a typed error, or does not notice, and nothing is left.

SANDBOX_FAULTS_ALL=1 tries every call with every errno (some minutes); else each place in the sources is tried once.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox import PIPE, Container
from sandbox._launch import driver
from tests.faults.cases import Outcome, Scenario, begin
from tests.faults.conftest import ALL
from tests.faults.faulty import MARK, Action, Call, Faulty, Role
from tests.faults.scenarios import SCENARIOS
from tests.leak.snapshot import descendants, describe
from tests.support import needs

pytestmark = [needs("userns", "program:gcc"), pytest.mark.unprivileged, pytest.mark.timeout(900)]

# They fail for a wrong argument only, and no handler ever interrupts them.
NEVER_FAILS = re.compile(r"\S+ (wait4|waitid|waitpid|nanosleep|read\((signals|ends),)")
# Those that wait. Without a handler only a stop and SIGCONT interrupts them, and not all (signal(7)).
IS_INTERRUPTED = re.compile(r"\S+ (poll|epoll_wait|recvmsg|waitpid|nanosleep|syscall\((441|281),)")


def fail(faulty: Faulty, scenario: Scenario, call: Call, error: int) -> Outcome:
    faulty.ask(Action.FAIL, call.role, call.number, error)
    return begin(scenario, faulty).outcome()


def complaints(faulty: Faulty, scenario: Scenario, calls: list[Call], error: int) -> list[str]:
    """What is wrong, and is so again: a machine with other work may be slow once."""
    found: list[str] = []
    for call in calls:
        if complaints_of(faulty, scenario, call, error):
            found += [f"{call.role.name} #{call.number} {call.text}: {line}" for line in complaints_of(faulty, scenario, call, error)]
    return found


def complaints_of(faulty: Faulty, scenario: Scenario, call: Call, error: int) -> list[str]:
    outcome = fail(faulty, scenario, call, error)
    return [] if NEVER_FAILS.match(hit(faulty, call).text) else outcome.complaints


def hit(faulty: Faulty, call: Call) -> Call:
    """The call that failed: how often init wakes up is not the same each time, so the number may have been that of another."""
    return next((made for made in faulty.calls() if (made.role, made.number) == (call.role, call.number)), call)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOMEM] if ALL else [errno.ENOMEM], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_call_that_fails_is_a_typed_error_at_once_and_leaves_nothing(name: str, number: int, faulty: Faulty, trace: Callable[[Scenario], list[Call]]) -> None:
    calls = [call for call in trace(SCENARIOS[name]) if not NEVER_FAILS.match(call.text)]
    assert calls
    assert not (found := complaints(faulty, SCENARIOS[name], calls, number)), "\n".join(found)


# Without these, what the launcher or an init holds could be seen by others, would outlive its owner, or get a terminal's signals.
MUST_HOLD = re.compile(
    r"\S+ (prctl\((4|1), |setsid\(\)|open\(./dev/null|dup2\(null|epoll_create1|signalfd|sigprocmask\(2, &mask|syscall\(434|syscall\(436, first, last)"
)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOMEM], ids=errno.errorcode.get)
def test_what_must_hold_is_not_passed_over(number: int, faulty: Faulty) -> None:
    faulty.ask(Action.NONE)
    begin(SCENARIOS["plain"], faulty).outcome()
    calls = [call for call in faulty.calls() if call.role in (Role.STARTER, Role.LAUNCHER, Role.INIT) and MUST_HOLD.match(call.text)]
    assert len(calls) > 15
    passed_over: list[str] = []
    for call in calls:
        outcome = fail(faulty, SCENARIOS["plain"], call, number)
        assert not outcome.complaints, (call.text, outcome.complaints)
        if not outcome.error:
            passed_over.append(f"{call.role.name} #{call.number} {call.text}")
    assert not passed_over, "\n".join(passed_over)


def leaves_a_child_beside_another_program() -> None:
    with Container() as c, c.popen(["cat"], stdin=PIPE) as cat:
        c.exec(["sh", "-c", "sleep 60 & exit 0"]).check()
        alive = [describe(pid).partition(" ")[0] for pid in descendants(c.pid)]
        assert alive == ["cat"], alive
        cat.kill()


def test_what_a_program_left_is_killed_though_init_cannot_look_for_it_at_once(faulty: Faulty) -> None:
    faulty.ask(Action.NONE)
    assert not begin(leaves_a_child_beside_another_program, faulty).outcome().complaints
    looks = [call for call in faulty.calls() if re.match(r'init.c:\d+ (openat\(.*"\."|syscall\((217|61),)', call.text)]
    assert looks
    assert not (found := complaints(faulty, leaves_a_child_beside_another_program, looks, errno.EMFILE)), "\n".join(found)


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_interrupted_call_is_made_again(name: str, faulty: Faulty, trace: Callable[[Scenario], list[Call]]) -> None:
    tried = set[str]()
    for call in trace(SCENARIOS[name]):
        if IS_INTERRUPTED.match(call.text):
            outcome = fail(faulty, SCENARIOS[name], call, errno.EINTR)
            if not IS_INTERRUPTED.match(hit(faulty, call).text):
                continue
            tried.add(call.name)
            assert not outcome.error, f"{call.text}: {outcome.message}"
            assert not outcome.complaints, f"{call.text}: {outcome.complaints}"
    assert tried >= {"epoll_wait", "recvmsg", "poll", "syscall"} or name != "plain"  # what it has tried the others leave out


def test_the_launcher_that_is_shipped_has_no_faults(faulty: Faulty) -> None:
    assert MARK in faulty.program.read_bytes()
    assert MARK not in Path(driver._BINARY).read_bytes()
