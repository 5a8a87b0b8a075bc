"""The parsers of what the kernel tells about a group, on its own text; and a v2 host made of plain files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.cg import Limits, files
from sandbox.cg.bundle import Bundle, Events, Place
from sandbox.cg.hosts import Hierarchy, Host
from sandbox.cg.inforce import parse_io_max, read_limits
from sandbox.cg.introspect import Introspection
from sandbox.cg.limits import IoMax, Write
from sandbox.cg.stats import IoStats, Pressure, Stall, collect, parse_io_v1, parse_io_v2, parse_pressure, split_cpu
from sandbox.errors import UnsupportedError, UsageError

V2_FILES = {
    "cgroup.controllers": "cpu io memory pids\n",
    "cgroup.procs": "12\n13\n",
    "memory.current": "1048576\n",
    "memory.peak": "2097152\n",
    "memory.max": "98304\n",
    "memory.swap.max": "0\n",
    "memory.swap.current": "0\n",
    "memory.stat": "anon 4096\nfile 8192\nkernel 100\n",
    "memory.events": "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n",
    "memory.pressure": "some avg10=0.10 avg60=0.20 avg300=0.30 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "cpu.stat": "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 250000\n",
    "cpu.max": "150000 100000\n",
    "cpu.weight": "50\n",
    "pids.current": "2\n",
    "pids.peak": "5\n",
    "pids.max": "max\n",
    "pids.events": "max 3\n",
    "io.stat": "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n",
    "io.max": "254:0 rbps=1048576 wbps=max riops=max wiops=max\n",
}


@pytest.fixture
def v2(tmp_path: Path) -> Bundle:
    for name, text in V2_FILES.items():
        (tmp_path / name).write_text(text)
    hierarchy = Hierarchy(2, ("cpu", "io", "memory", "pids"), "/mnt", "/mnt")
    return Bundle(Host((hierarchy,)), "group", {"/mnt": Place(hierarchy, str(tmp_path))})


def test_statistics_of_v2(v2: Bundle):
    stats = collect(v2)
    assert (stats.memory, stats.memory_peak, stats.anon, stats.file, stats.swap) == (1048576, 2097152, 4096, 8192, 0)
    assert (stats.cpu_time, stats.user_time, stats.system_time) == (1.5, 1.0, 0.5)
    assert (stats.periods, stats.throttled_periods, stats.throttled_time) == (10, 4, 0.25)
    assert (stats.pids, stats.pids_peak) == (2, 5)
    assert stats.io == (IoStats("254:0", 4096, 8192, 1, 2),)
    assert stats.pressure == {"memory": Pressure(Stall(0.1, 0.2, 0.3, 1.5), Stall(0.0, 0.0, 0.0, 0.0))}


def test_events_of_v2(v2: Bundle):
    assert v2.events() == Events(oom=2, oom_kill=1, max=7, pids_max=3)


def test_limits_are_read_back_from_v2(v2: Bundle):
    assert read_limits(v2) == Limits(memory=98304, swap=0, cpus=1.5, cpu_weight=50, io_max=[IoMax("254:0", rbps=1 << 20)])


def test_processes_of_v2(v2: Bundle):
    assert v2.pids() == {12, 13}


def test_typed_files_of_v2(v2: Bundle, tmp_path: Path):
    files_ = Introspection(v2)
    assert files_.names() == ["memory", "cpu", "cpuacct", "pids", "io", "freezer", "pressure"]
    assert files_.memory.max == 98304
    assert files_.memory.events["oom_kill"] == 1
    assert files_.pids.max is None
    assert files_.cpu.max == (150000, 100000)
    files_.pids.max = 7
    assert (tmp_path / "pids.max").read_text().startswith("7")
    with pytest.raises(AttributeError, match="no controller 'hugetlb'"):
        _ = files_.hugetlb
    with pytest.raises(AttributeError, match="has no 'limit_in_bytes' here"):
        _ = files_.memory.limit_in_bytes
    with pytest.raises(UsageError, match="can only be read"):
        files_.memory.current = 1
    with pytest.raises(UnsupportedError, match=r"memory\.high"):
        _ = files_.memory.high


def test_typed_files_of_v1_that_cgroupspy_has_not(tmp_path: Path):
    rates = [f"blkio.throttle.{way}_{what}_device" for way in ("read", "write") for what in ("bps", "iops")]
    for name, text in {**dict.fromkeys(rates, ""), rates[0]: "8:0 1024\n254:0 2048\n", "hugetlb.2MB.limit_in_bytes": "4194304\n"}.items():
        (tmp_path / name).write_text(text)
    hierarchy = Hierarchy(1, ("blkio", "hugetlb"), "/mnt", "/mnt")
    files_ = Introspection(Bundle(Host((hierarchy,)), "group", {"/mnt": Place(hierarchy, str(tmp_path))}))
    assert files_.names() == ["io", "hugetlb"]
    assert files_.io.throttle_read_bps_device == {"8:0": 1024, "254:0": 2048}
    assert files_.io.throttle_read_iops_device == files_.io.throttle_write_bps_device == files_.io.throttle_write_iops_device == {}
    files_.io.throttle_write_bps_device = {"8:0": 512}
    assert files_.io.throttle_write_bps_device == {"8:0": 512}
    assert files_.hugetlb.limit_2mb == 4194304


def test_a_missing_file_is_fatal_unless_optional_or_replaced(tmp_path: Path):
    directory = str(tmp_path)
    with pytest.raises(UnsupportedError, match=r"no file memory\.max"):
        files.apply(directory, Write("memory", "memory.max", "1"))
    files.apply(directory, Write("memory", "memory.max", "1", optional=True))
    (tmp_path / "other").write_text("")
    files.apply(directory, Write("io", "io.weight", "1", instead=Write("io", "other", "2")))
    assert (tmp_path / "other").read_text() == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


def test_an_absent_statistic_is_none_not_zero(tmp_path: Path):
    hierarchy = Hierarchy(2, ("memory",), "/mnt", "/mnt")
    stats = collect(Bundle(Host((hierarchy,)), "group", {"/mnt": Place(hierarchy, str(tmp_path))}))
    assert (stats.memory, stats.memory_peak, stats.cpu_time, stats.pids, stats.io, stats.pressure) == (None, None, None, None, None, {})


def test_io_of_v1():
    operations = "8:0 Read 3\n8:0 Write 4\n8:0 Total 7\nTotal 7\n"
    assert parse_io_v1("8:0 Read 100\n8:0 Write 200\n8:0 Sync 0\n8:0 Total 300\nTotal 300\n", operations) == (IoStats("8:0", 100, 200, 3, 4),)
    assert parse_io_v1("Total 0\n", "Total 0\n") == ()


def test_io_of_v2_leaves_out_disks_that_were_not_used():
    assert parse_io_v2("8:0 \n8:16 rbytes=1 wbytes=2 rios=3 wios=4\n") == (IoStats("8:16", 1, 2, 3, 4),)


def test_io_max_of_v2():
    assert parse_io_max("8:0 rbps=max wbps=5 riops=max wiops=7\n") == {"8:0": {"wbps": 5, "wiops": 7}}


def test_pressure_that_is_off_is_none():
    assert parse_pressure("") is None


@given(st.integers(0, 1 << 60), st.integers(0, 1 << 60), st.integers(0, 1 << 60))
def test_the_parts_of_cpu_time_add_up_to_the_whole(total: int, user: int, system: int):
    parts = split_cpu(total, user, system)
    assert sum(parts) == total
    assert min(parts) >= 0


@given(st.dictionaries(st.text("abc_:0123", min_size=1), st.integers(0, 1 << 63)))
def test_flat_files_survive_a_round_trip(values: dict[str, int]):
    assert files.parse_flat("".join(f"{name} {number}\n" for name, number in values.items())) == values


@given(st.text())
def test_flat_files_take_any_text(text: str):
    files.parse_flat(text)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\nb", "é", "-x", "x" * 201, "a b", "\0"])
def test_a_name_that_could_be_taken_for_something_else_is_refused(name: str):
    with pytest.raises(UsageError):
        files.check_name(name)
