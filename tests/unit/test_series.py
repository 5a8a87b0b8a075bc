"""Samples of a group made of plain files, and what a monitor's plot draws of samples."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import Sample, UnsupportedError, UsageError
from sandbox._plot import draw, panels
from sandbox.cg.bundle import Bundle, Place
from sandbox.cg.hosts import Hierarchy, Host
from sandbox.cg.series import Sampler
from sandbox.monitoring import next_due
from tests.support import known, needs

pytestmark = pytest.mark.unprivileged

V2 = {
    "memory.current": "1048576\n", "memory.peak": "2097152\n", "memory.swap.current": "3\n", "memory.stat": "anon 4096\nfile 8192\n",
    "cpu.stat": "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 250000\n",
    "pids.current": "2\n", "io.stat": "254:0 rbytes=1 wbytes=2 rios=3 wios=4\n8:0 rbytes=10 wbytes=20 rios=30 wios=40\n7:0 \n",
    "cpu.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\n",
    "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=2000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3000000\n",
    "io.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=4000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5000000\n",
}  # fmt: skip
V1 = {
    "memory.usage_in_bytes": "1048576\n", "memory.max_usage_in_bytes": "2097152\n", "memory.stat": "cache 1\ntotal_cache 8192\ntotal_rss 4096\ntotal_swap 3\n",
    "cpuacct.usage": "1500000000\n", "cpuacct.usage_user": "1000000000\n", "cpuacct.usage_sys": "500000000\n",
    "cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 250000000\n", "pids.current": "2\n",
    "blkio.throttle.io_service_bytes_recursive": "8:0 Read 11\n8:0 Write 22\n8:0 Total 33\nTotal 33\n",
    "blkio.throttle.io_serviced_recursive": "8:0 Read 33\n8:0 Write 44\nTotal 77\n",
}  # fmt: skip
COMMON = (1048576, 2097152, 4096, 8192, 3, 1.5, 1.0, 0.5, 0.25, 2, 11, 22, 33, 44)


def bundle(directory: Path, version: int, texts: dict[str, str]) -> Bundle:
    for name, text in texts.items():
        (directory / name).write_text(text)
    controllers = ("cpu", "io", "memory", "pids") if version == 2 else ("cpu", "cpuacct", "blkio", "memory", "pids")
    hierarchy = Hierarchy(version, controllers, "/mnt", "/mnt")
    return Bundle(Host((hierarchy,)), "group", {"/mnt": Place(hierarchy, str(directory))})


def clock():
    ticks = itertools.count()
    return lambda: float(next(ticks))


def test_a_sample_of_v2(tmp_path):
    with Sampler(bundle(tmp_path, 2, V2)) as sampler:
        assert sampler.read(clock()) == Sample(0.5, *COMMON, 1.0, 2.0, 3.0, 4.0, 5.0)


def test_a_sample_of_v1_has_no_pressure(tmp_path):
    with Sampler(bundle(tmp_path, 1, V1)) as sampler:
        assert sampler.read(clock()) == Sample(0.5, *COMMON)


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_not_there_is_none_and_never_0(tmp_path, version):
    with Sampler(bundle(tmp_path, version, {})) as sampler:
        assert sampler.read(clock()) == Sample(0.5)


def test_files_stay_open_and_are_read_anew(tmp_path):
    with Sampler(bundle(tmp_path, 2, V2)) as sampler:
        before = len(os.listdir("/proc/self/fd"))
        sampler.read(clock())
        opened = len(os.listdir("/proc/self/fd")) - before
        assert opened == len(V2)
        (tmp_path / "memory.current").write_text("77\n")
        assert known(sampler.read(clock())).memory == 77
        assert len(os.listdir("/proc/self/fd")) == before + opened
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_appears_later_is_found(tmp_path):
    # A run with a limit on I/O brings the controller into its container's group.
    with Sampler(bundle(tmp_path, 2, {name: text for name, text in V2.items() if name != "io.stat"})) as sampler:
        assert known(sampler.read(clock())).read_bytes is None
        (tmp_path / "io.stat").write_text("")
        assert known(sampler.read(clock())).read_bytes == 0


def test_a_removed_group_gives_nothing(tmp_path):
    directory = tmp_path / "group"
    directory.mkdir()
    with Sampler(bundle(directory, 2, {})) as sampler:
        assert sampler.read(clock()) is not None
        directory.rmdir()
        assert sampler.read(clock()) is None


def test_out_of_descriptors_is_an_error(tmp_path, monkeypatch):
    def refuse(path: str, flags: int) -> int:
        raise OSError(24, "Too many open files", path)

    monkeypatch.setattr("sandbox.cg.series.os.open", refuse)
    with Sampler(bundle(tmp_path, 2, V2)) as sampler, pytest.raises(OSError, match="Too many open files"):
        sampler.read(clock())


@given(st.integers(0, 10**6), st.integers(1, 1024), st.floats(-0.001, 5000))
def test_the_next_sample_is_due_on_the_grid_and_in_the_future(start: int, stride: int, late: float):
    due = start * stride
    following, missed = next_due(due, stride, due + late)
    assert following == due + stride * (missed + 1)
    assert following > due + late
    assert following - (due + max(late, 0.0)) <= stride


def test_a_late_sample_costs_those_whose_time_has_passed():
    assert next_due(5, 1, 5.001) == (6, 0)
    assert next_due(5, 1, 4.9999) == (6, 0)
    assert next_due(5, 1, 8.5) == (9, 3)
    assert next_due(8, 4, 17.0) == (20, 2)


ROWS = [Sample(0.0, memory=1 << 20, cpu_time=0.0, pids=1), Sample(0.5, memory=2 << 20, cpu_time=0.25, pids=None), Sample(1.0, memory=3 << 20, cpu_time=1.25)]


def test_a_plot_has_panels_for_what_is_known():
    found = dict(panels(ROWS))
    assert list(found) == ["memory (MiB)", "CPUs used", "processes, threads"]
    assert found["memory (MiB)"] == [("all", ([0.0, 0.5, 1.0], [1.0, 2.0, 3.0]))]
    assert found["CPUs used"] == [("all", ([0.25, 0.75], [0.5, 2.0]))]
    assert found["processes, threads"] == [("at once", ([0.0], [1.0]))]


@needs("module:matplotlib")
@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_a_plot_is_drawn_into_a_file(tmp_path, suffix, magic):
    draw(ROWS, tmp_path / f"plot.{suffix}", title="a run")
    assert (tmp_path / f"plot.{suffix}").read_bytes().startswith(magic)


def test_too_few_samples_are_refused(tmp_path):
    for rows in ([], ROWS[:1], [Sample(0.0), Sample(1.0)]):
        with pytest.raises(UsageError, match="not enough"):
            draw(rows, tmp_path / "plot.png", title="")


def test_without_matplotlib_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'sandbox\[plot\]'"):
        draw(ROWS, tmp_path / "plot.png", title="")
