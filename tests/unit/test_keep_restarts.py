"""Docker's rules about restarts, without a container."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import UsageError
from sandbox.keep._restarts import LONGEST_S, Policy, Restarts, to_policy


def test_pauses_double_from_a_tenth_of_a_second_to_a_minute() -> None:
    restarts = Restarts(Policy("always"))
    pauses = [restarts.after(failed=False, ran_s=0.0) for _ in range(13)]
    assert pauses == [pytest.approx(min(0.1 * 2**power, 60.0)) for power in range(13)]
    assert restarts.count == 13
    assert restarts.after(failed=True, ran_s=9.9) == LONGEST_S
    assert restarts.after(failed=True, ran_s=10.0) == 0.1  # it had run well
    assert restarts.after(failed=True, ran_s=0.0) == 0.2
    restarts.begin()
    assert (restarts.count, restarts.after(failed=True, ran_s=0.0)) == (0, 0.1)


@given(st.lists(st.floats(0, 20), max_size=300))
def test_a_program_is_never_run_more_often_than_its_pauses_allow(runs: list[float]) -> None:
    restarts, short, total = Restarts(Policy("unless-stopped")), 0, 0.0
    for ran in runs:
        pause = restarts.after(failed=True, ran_s=ran)
        assert pause is not None
        total += ran + pause
        short = 0 if ran >= 10 else short + 1
        assert pause >= 0.1
        assert short < 11 or pause == 60.0
    assert len(runs) <= 11 * (1 + total / 10)


def test_what_is_due() -> None:
    assert Restarts(Policy("no")).after(failed=True, ran_s=0) is None
    assert Restarts(Policy("on-failure")).after(failed=False, ran_s=0) is None
    bounded = Restarts(Policy("on-failure", 2))
    assert [bounded.after(failed=True, ran_s=99) for _ in range(3)] == [0.1, 0.1, None]
    assert bounded.count == 2


@pytest.mark.parametrize("text", ["no", "always", "unless-stopped", "on-failure", "on-failure:5"])
def test_policies_are_dockers(text: str) -> None:
    assert str(to_policy(text)) == text


@pytest.mark.parametrize("text", ["", "No", "yes", "always:3", "no:0", "on-failure:", "on-failure:-1", "on-failure:1.5", "on-failure:1:2", "on-failure:²"])
def test_no_other_policy_is_taken(text: str) -> None:
    with pytest.raises(UsageError, match="restart"):
        to_policy(text)


@given(st.text(max_size=20))
def test_any_text_is_a_policy_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert to_policy(str(to_policy(text))) == to_policy(text)
