"""A short soak: a mixture of fates through a pool, each told right, and nothing grows; `benchmarks/soak.py` is the long one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.soak import OTHERS, Soak, make_root
from sandbox import Status
from tests.support import needs

RUNS = int(os.environ.get("SANDBOX_SOAK_RUNS", "5000"))


@needs("root", "cgroup:memory", "cgroup:pids", "userns", "overlay", "program:gcc")
@pytest.mark.usefixtures("no_leftovers")
def test_every_run_is_told_right_and_nothing_grows(tmp_path_factory: pytest.TempPathFactory) -> None:
    soak = Soak(make_root(tmp_path_factory.mktemp("soak")), RUNS, workers=2, every=100).run()
    assert soak.wrong == []
    assert sum(soak.seen.values()) == RUNS
    assert set(soak.seen) == {Status.EXITED, *(fate.status for fate in OTHERS)}
    # How fast it is depends on what else the machine does; the long one looks at that.
    assert [problem for problem in soak.growing() if "rate" not in problem] == []


def test_what_grows_is_said(tmp_path: Path) -> None:
    from benchmarks.soak import Window

    flat = Window(runs=1, rate=1000.0, memory_kb=20000, launcher_kb=500, fds=20, groups=70, threads=2, replaced=0)
    soak = Soak(tmp_path, 100, 1, windows=[flat] * 20)
    assert soak.growing() == []
    from attrs import evolve

    for name, value in (("memory_kb", 24000), ("launcher_kb", 2000), ("fds", 40), ("groups", 300), ("threads", 9)):
        soak.windows = [*[flat] * 10, *[evolve(flat, **{name: value})] * 10]
        assert [problem.split()[0] for problem in soak.growing()] == [name]
    soak.windows = [*[flat] * 10, *[evolve(flat, rate=500.0)] * 10]
    assert "rate" in soak.growing()[0]
