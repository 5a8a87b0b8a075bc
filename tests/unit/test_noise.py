"""What disturbs measurements: what is said of two moments of the host, made up here, and of this one."""

from __future__ import annotations

import os

import pytest

from sandbox.cli.doctor.finding import State
from sandbox.cli.doctor.noise import to_finding
from sandbox.noise import Counters, Source, Watch, compare, parse_cpu, sources

pytestmark = pytest.mark.unprivileged

STAT = """\
cpu  40 0 4 60 0 0 0 9 0 0
cpu0 10 0 1 20 0 0 0 4 0 0
cpu1 30 0 3 40 0 0 0 5 0 0
intr 12345
"""
QUIET = Counters(time=100.0, cpu=(1000, 0, 100, 5000, 0, 0, 0, 0, 0, 0), waited=1_000_000, swapped=7)


def later(**changes: object) -> Counters:
    values: dict[str, object] = {"time": 110.0, "cpu": (1500, 0, 200, 5400, 0, 0, 0, 0, 0, 0), "waited": 1_100_000, "swapped": 7}
    return Counters(**{**values, **changes})


def test_only_our_own_cpus_count():
    assert parse_cpu(STAT, {1}) == (30, 0, 3, 40, 0, 0, 0, 5, 0, 0)
    assert parse_cpu(STAT, {0, 1}) == (40, 0, 4, 60, 0, 0, 0, 9, 0, 0)
    assert parse_cpu(STAT, {7}) is None
    assert parse_cpu("", {0}) is None


def test_a_quiet_host_gets_no_complaint():
    assert compare(QUIET, later()) == ()


@pytest.mark.parametrize(
    ("after", "word"),
    [
        (later(cpu=(1500, 0, 200, 5350, 0, 0, 0, 50, 0, 0)), "steal: the hypervisor took 5.0%"),
        (later(waited=3_000_000), "busy CPUs: 20%"),
        (later(swapped=17), "swapping: 10 pages"),
    ],
)
def test_each_disturbance_is_told_alone(after: Counters, word: str):
    (line,) = compare(QUIET, after)
    assert line.startswith(word)


def test_what_the_kernel_does_not_tell_is_no_noise():
    silent = Counters(time=110.0, cpu=None, waited=None, swapped=None)
    assert compare(QUIET, silent) == compare(silent, later()) == ()


def test_guests_time_is_not_counted_twice():
    # All of the user time was a guest's: it stands in both columns, and the steal is 50 of 1000.
    after = later(cpu=(1950, 0, 100, 5000, 0, 0, 0, 50, 950, 0))
    assert compare(QUIET, after)[0].startswith("steal: the hypervisor took 5.0%")


def test_a_watch_looks_at_this_host():
    with Watch() as watch:
        pass
    assert all(": " in line for line in watch.complaints())
    assert Counters.read().cpu is not None, "there is a /proc/stat with our CPUs"


def test_every_source_of_this_host_is_told():
    found = {source.what: source for source in sources()}
    assert found.keys() == {"swap", "SMT", "CPU governor", "turbo", "ASLR", "transparent huge pages", "virtual machine", "load"}
    assert all(source.remedy for source in found.values())
    assert found["load"].is_noisy == (float(found["load"].value.split()[0]) > 0.1 * len(os.sched_getaffinity(0)))


def test_doctor_shows_a_remedy_only_against_noise():
    shown = [to_finding(Source("SMT", noisy, "on", "off with it")) for noisy in (True, False, None)]
    assert [finding.state for finding in shown] == [State.NOTE, State.OK, State.NOTE]
    assert [finding.remedy for finding in shown] == ["off with it", "", ""]
    assert shown[2].value == "the kernel does not tell"
