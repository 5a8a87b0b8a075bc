"""Docker's rules about health, and what the options say, without a container."""

from __future__ import annotations

import contextlib
import string
from argparse import Namespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import ImageError, UsageError
from sandbox.cli.health import wanted
from sandbox.image import Healthcheck, Settings
from sandbox.keep._health import OUTCOMES, Check, Health, to_check

CHECK = Check(("true",), ("CMD", "true"), interval=30.0, timeout=30.0, start_period=10.0, retries=3)


def outcome(code: int) -> dict[str, object]:
    return {"ExitCode": code}


def test_failures_in_the_start_period_do_not_count_until_it_was_healthy_once() -> None:
    health = Health(CHECK)
    for _ in range(9):
        health.add(outcome(1), since_start=9.0)
    assert (health.status, health.streak) == ("starting", 0)
    assert (health.pause(since_start=9.0), health.pause(since_start=10.0)) == (5.0, 30.0)
    health.add(outcome(0), since_start=9.0)
    health.add(outcome(1), since_start=9.5)
    assert (health.status, health.streak, health.pause(since_start=9.0)) == ("healthy", 1, 30.0)


@given(st.lists(st.integers(-1, 2), max_size=30), st.integers(1, 5))
def test_so_many_failures_in_a_row_are_unhealthy_and_five_outcomes_are_kept(codes: list[int], retries: int) -> None:
    health = Health(Check(("true",), ("CMD", "true"), 30.0, 30.0, 0.0, retries))
    streak, status = 0, "starting"
    for code in codes:
        health.add(outcome(code), since_start=1.0)
        streak = 0 if code == 0 else streak + 1
        status = "healthy" if code == 0 else "unhealthy" if streak >= retries else status
        assert (health.status, health.streak) == (status, streak)
    assert [found["ExitCode"] for found in health.log] == codes[-OUTCOMES:]


def test_in_the_start_period_checks_come_at_an_interval_of_their_own() -> None:
    image = Settings(healthcheck=Healthcheck(("CMD", "x"), interval=60.0, start_period=30.0, start_interval=0.5))
    check = to_check(None, image)
    assert check is not None
    assert (check.start_interval, check.document()["StartInterval"]) == (0.5, 500_000_000)
    health = Health(check)
    assert (health.pause(since_start=1.0), health.pause(since_start=31.0)) == (0.5, 60.0)
    for interval, expected in ((60.0, 5.0), (2.0, 2.0)):
        found = to_check(Healthcheck(("CMD", "x"), interval=interval), None)
        assert found is not None
        assert found.start_interval == expected


def test_what_is_wanted_goes_before_what_the_image_says() -> None:
    image = Settings(healthcheck=Healthcheck(("CMD-SHELL", "look"), interval=7.0, retries=4), shell=("/bin/ash", "-c"))
    found = to_check(Healthcheck((), timeout=2.0), image)
    assert found == Check(("/bin/ash", "-c", "look"), ("CMD-SHELL", "look"), 7.0, 2.0, 0.0, 4)
    assert to_check(Healthcheck(("NONE",)), image) is None
    assert to_check(None, Settings(healthcheck=Healthcheck(("NONE",)))) is None
    assert to_check(None, None) is None
    with pytest.raises(ImageError, match="neither"):
        to_check(None, Settings(healthcheck=Healthcheck(("WHAT", "x"))))
    for wrong in (Healthcheck(("CMD", "x"), interval=1e-9), Healthcheck(("CMD", "x"), retries=-1), Healthcheck((), timeout=1.0)):
        with pytest.raises(UsageError, match="health"):
            to_check(wrong, None)


def parsed(**given: object) -> Namespace:
    names = ("health_cmd", "health_interval", "health_timeout", "health_start_period", "health_start_interval", "health_retries")
    return Namespace(**{**dict.fromkeys(names), "no_healthcheck": False, **given})


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30.0), ("1m30s", 90.0), ("1.5s", 1.5), ("1h1ms", 3600.001), ("0", None), ("0s", None)])
def test_times_are_dockers(text: str, seconds: float | None) -> None:
    found = wanted(parsed(health_cmd="x", health_interval=text))
    assert found is not None
    assert found.interval == pytest.approx(seconds)


@given(st.text(string.printable, max_size=12))
def test_no_other_time_is_taken(text: str) -> None:
    with contextlib.suppress(UsageError):
        found = wanted(parsed(health_cmd="x", health_interval=text))
        assert found is not None
        assert found.interval is None or found.interval >= 0.001
