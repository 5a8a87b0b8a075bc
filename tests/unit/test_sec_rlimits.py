"""Resource limits: what is asked for is exact or refused, what is ours is lowered to the caller's ceiling."""

from __future__ import annotations

import resource

import attrs
import pytest

from sandbox.errors import UnsupportedError, UsageError
from sandbox.sec.rlimits import INFINITY, RESOURCES, Rlimits, hard_limits, rlimit_settings

OPEN = (INFINITY,) * len(RESOURCES)


def settings(ceilings: tuple[int, ...] = OPEN, **limits: object) -> dict[str, tuple[int, int]]:
    return {RESOURCES[number]: (soft, hard) for number, soft, hard in rlimit_settings(Rlimits(**limits), ceilings)}  # type: ignore[arg-type]


def lowered(name: str, ceiling: int) -> tuple[int, ...]:
    return tuple(ceiling if other == name else INFINITY for other in RESOURCES)


def test_numbers_are_the_kernels():
    # RLIMIT_LOCKS has no name in Python.
    for number, name in enumerate(RESOURCES):
        assert name == "locks" or getattr(resource, f"RLIMIT_{name.upper()}") == number
    assert [a.name.rstrip("_") for a in attrs.fields(Rlimits)] == list(RESOURCES)


def test_defaults_are_finite_where_it_matters():
    assert settings() == {
        "stack": (8 << 20, INFINITY),
        "core": (0, 0),
        "nofile": (1024, 65536),
        "memlock": (8 << 20, 8 << 20),
        "sigpending": (4096, 4096),
        "msgqueue": (819200, 819200),
        "nice": (0, 0),
        "rtprio": (0, 0),
    }


def test_one_value_is_both_and_two_are_soft_and_hard():
    got = settings(nofile=64, as_="1G", stack=("16M", "unlimited"), cpu=(1, 2), core=0, fsize="unlimited")
    assert (got["nofile"], got["as"], got["stack"], got["cpu"]) == ((64, 64), (1 << 30, 1 << 30), (16 << 20, INFINITY), (1, 2))
    assert got["fsize"] == (INFINITY, INFINITY)


def test_zero_is_a_limit():
    assert settings(nofile=0, nproc=0)["nofile"] == settings(nproc=0)["nproc"] == (0, 0)


def test_our_defaults_are_lowered_to_the_callers_ceiling():
    assert settings(lowered("nofile", 512))["nofile"] == (512, 512)
    assert settings(lowered("nofile", 4096))["nofile"] == (1024, 4096)
    assert settings(lowered("stack", 1 << 20))["stack"] == (1 << 20, 1 << 20)


def test_what_was_asked_for_is_never_lowered():
    with pytest.raises(UnsupportedError, match=r"nofile: 4096 .* 512.*LimitNOFILE") as caught:
        settings(lowered("nofile", 512), nofile=4096)
    assert caught.value.feature == "rlimit"
    with pytest.raises(UnsupportedError, match="unlimited"):
        settings(lowered("stack", 1 << 20), stack="unlimited")
    assert settings(lowered("nofile", 512), nofile=512)["nofile"] == (512, 512)


@pytest.mark.parametrize(
    "limits",
    [
        {"nofile": -1},
        {"nofile": "64M"},
        {"nofile": 1.5},
        {"nofile": True},
        {"nofile": (2, 1)},
        {"nofile": (1, 2, 3)},
        {"stack": "much"},
        {"stack": "-1M"},
        {"stack": ("unlimited", "8M")},
        {"cpu": "soon"},
        {"core": []},
    ],
)
def test_what_is_no_limit_is_refused(limits: dict[str, object]):
    with pytest.raises(UsageError, match=f"rlimit {next(iter(limits))}|stack"):
        Rlimits(**limits)  # type: ignore[arg-type]


def test_the_callers_ceilings_are_read():
    ceilings = hard_limits()
    assert len(ceilings) == len(RESOURCES)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert ceilings[7] == (INFINITY if hard == resource.RLIM_INFINITY else hard)
    rlimit_settings(Rlimits(), ceilings)
