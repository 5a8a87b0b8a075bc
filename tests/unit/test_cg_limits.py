"""Limits: what is refused, and what they become in v1 and in v2."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.cg.limits import (
    CONTROLLER_OF,
    FIELDS,
    IoMax,
    IoMaxes,
    Limits,
    Write,
    controllers,
    format_cpuset,
    page_name,
    parse_cpuset,
    shares_to_weight,
    weight_to_bfq,
    weight_to_shares,
    writes,
)
from sandbox.errors import UnsupportedError, UsageError

V1 = tuple((name, 1) for name in ("memory", "cpu", "cpuset", "pids", "io", "hugetlb", "devices"))
V2 = tuple((name, 2) for name, _ in V1)


def pairs(limits: Limits, versions: tuple[tuple[str, int], ...]) -> list[tuple[str, str | None]]:
    return [(write.file, write.value) for write in writes(limits, versions)]


def test_no_limits_write_nothing():
    assert writes(Limits(), V1) == writes(Limits(), V2) == ()
    assert controllers(Limits()) == frozenset()


def test_memory_comes_with_no_swap_and_ends_a_group_as_a_whole_on_v2():
    assert writes(Limits(memory="100M"), V2) == (
        Write("memory", "memory.max", "104857600"),
        Write("memory", "memory.swap.max", "0", optional=True),
        Write("memory", "memory.oom.group", "1", optional=True),
    )


def test_memory_on_v1_is_written_before_memory_and_swap_together():
    memory, both = writes(Limits(memory="100M"), V1)
    assert (memory.file, memory.value) == ("memory.limit_in_bytes", "104857600")
    assert (both.file, both.value, both.optional) == ("memory.memsw.limit_in_bytes", "104857600", False)
    assert both.instead is not None
    assert both.instead.file == "memory.swappiness"


def test_swap_that_was_asked_for_has_no_way_out():
    assert pairs(Limits(memory="100M", swap="50M"), V1)[1] == ("memory.memsw.limit_in_bytes", str(150 << 20))
    assert writes(Limits(memory="100M", swap=0), V1)[1].instead is None
    swap = writes(Limits(memory="100M", swap="50M"), V2)[1]
    assert (swap.value, swap.optional, swap.instead) == (str(50 << 20), False, None)


def test_cpus():
    assert pairs(Limits(cpus=1.5), V2) == [("cpu.max", "150000 100000")]
    assert pairs(Limits(cpus=1.5), V1) == [("cpu.cfs_quota_us", "150000")]
    assert pairs(Limits(cpu_weight=100), V2) == [("cpu.weight", "100")]
    assert pairs(Limits(cpu_weight=100), V1) == [("cpu.shares", "1024")]


def test_cpuset_fills_both_files_on_v1():
    assert pairs(Limits(cpuset=[3, 0, 1]), V1) == [("cpuset.mems", None), ("cpuset.cpus", "0-1,3")]
    assert pairs(Limits(cpuset="0-1,3"), V2) == [("cpuset.cpus", "0-1,3")]


def test_io():
    disks: IoMaxes = {"8:16": {"rbps": "1M", "wiops": 100}, "8:0": IoMax("", wbps=5)}
    limits = Limits(io_max=disks, io_weight=100)
    assert pairs(limits, V2) == [("io.weight", "default 100"), ("io.bfq.weight", "100"), ("io.max", "8:0 wbps=5"), ("io.max", "8:16 rbps=1048576 wiops=100")]
    assert pairs(limits, V1) == [
        ("blkio.bfq.weight", "100"),
        ("blkio.throttle.write_bps_device", "8:0 5"),
        ("blkio.throttle.read_bps_device", "8:16 1048576"),
        ("blkio.throttle.write_iops_device", "8:16 100"),
    ]


def test_hugetlb_and_pids():
    assert pairs(Limits(hugetlb=[("1G", "2G"), ("2M", 0)], pids=5), V2) == [
        ("pids.max", "5"),
        ("hugetlb.2MB.max", "0"),
        ("hugetlb.1GB.max", "2147483648"),
    ]
    assert pairs(Limits(hugetlb={65536: 65536}), V1) == [("hugetlb.64KB.limit_in_bytes", "65536")]


def test_devices_deny_all_before_allowing_any():
    assert pairs(Limits(devices=["c 1:3 rwm"]), V1) == [("devices.deny", "a"), ("devices.allow", "c 1:3 rwm")]


def test_an_empty_list_of_devices_means_none_at_all():
    assert pairs(Limits(devices=[]), V1) == [("devices.deny", "a")]


def test_devices_on_v2_raise_unsupported():
    with pytest.raises(UnsupportedError, match="eBPF"):
        writes(Limits(devices=["c 1:3 rwm"]), V2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory": 0},
        {"memory": 4095},
        {"memory": -1},
        {"memory": "much"},
        {"memory": True},
        {"memory": 1 << 63},
        {"memory": (1 << 63) - 1, "swap": 1},
        {"swap": 0},
        {"memory": "1M", "swap": -1},
        {"cpus": 0},
        {"cpus": 0.001},
        {"cpus": float("nan")},
        {"cpus": float("inf")},
        {"cpus": "1"},
        {"cpus": True},
        {"cpu_weight": 0},
        {"cpu_weight": 10_001},
        {"cpuset": ""},
        {"cpuset": []},
        {"cpuset": "1-0"},
        {"cpuset": "0-99999999"},
        {"cpuset": "a"},
        {"cpuset": [-1]},
        {"cpuset": "0\n1"},
        {"pids": 0},
        {"pids": 1.5},
        {"pids": 1 << 23},
        {"io_weight": 0},
        {"io_max": {"8:0": {}}},
        {"io_max": {"8:0": {"rbps": 0}}},
        {"io_max": {"8:0": {"speed": 1}}},
        {"io_max": {"/nonexistent": {"rbps": 1}}},
        {"io_max": {"8:0 rbps=1\n8:1": {"rbps": 1}}},
        {"hugetlb": {3000: 1}},
        {"devices": "c 1:3 rwm"},
        {"devices": ["c 1:3"]},
        {"devices": ["c 1:3 rwm\na"]},
        {"devices": ["x *:* r"]},
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, object]):
    with pytest.raises(UsageError):
        Limits(**wrong)  # type: ignore[arg-type]


def test_limits_are_hashable_and_compare_by_what_they_mean():
    assert Limits(memory="1M", cpuset=[0, 1]) == Limits(memory=1 << 20, cpuset="0,1")
    assert len({Limits(io_max={"8:0": {"rbps": 1}}), Limits(io_max=[IoMax("8:0", rbps=1)])}) == 1


def test_updated_replaces_only_what_is_given():
    assert Limits(memory="1M", pids=5).updated(Limits(pids=6)) == Limits(memory="1M", pids=6)


def test_every_limit_has_a_controller():
    assert set(FIELDS) == set(CONTROLLER_OF)


@given(st.frozensets(st.integers(0, 300), min_size=1))
def test_cpusets_survive_a_round_trip(numbers: frozenset[int]):
    text = format_cpuset(numbers)
    assert parse_cpuset(text) == numbers
    assert Limits(cpuset=numbers).cpuset == Limits(cpuset=text).cpuset == text


@given(st.integers(1, 10_000))
def test_weights_survive_the_way_to_v1_and_back(weight: int):
    assert 2 <= weight_to_shares(weight) <= 262_144
    assert shares_to_weight(weight_to_shares(weight)) == weight
    assert 1 <= weight_to_bfq(weight) <= 1000


@given(st.integers(1, 9_999))
def test_a_larger_weight_never_becomes_less(weight: int):
    assert weight_to_shares(weight) < weight_to_shares(weight + 1)
    assert weight_to_bfq(weight) <= weight_to_bfq(weight + 1)


some_limits = st.builds(
    Limits,
    memory=st.none() | st.integers(4096, 1 << 50),
    cpus=st.none() | st.floats(0.01, 1000),
    cpu_weight=st.none() | st.integers(1, 10_000),
    pids=st.none() | st.integers(1, 1 << 22),
    io_weight=st.none() | st.integers(1, 10_000),
    cpuset=st.none() | st.frozensets(st.integers(0, 64), min_size=1),
)


@given(some_limits, st.sampled_from([V1, V2]))
def test_writes_touch_no_other_controller_and_no_line_is_broken(limits: Limits, versions: tuple[tuple[str, int], ...]):
    planned = writes(limits, versions)
    assert {write.controller for write in planned} == controllers(limits)
    for write in planned:
        assert "/" not in write.file
        assert write.value is None or "\n" not in write.value


@given(some_limits, some_limits)
def test_updating_twice_is_updating_by_both(one: Limits, two: Limits):
    both = one.updated(two)
    assert both.updated(two) == both
    assert controllers(both) == controllers(one) | controllers(two)


@pytest.mark.parametrize(("size", "name"), [(64 << 10, "64KB"), (2 << 20, "2MB"), (1 << 30, "1GB"), (16 << 30, "16GB"), (512 << 20, "512MB")])
def test_page_names(size: int, name: str):
    assert page_name(size) == name
