"""The measuring example, from end to end: its figures, its files, its plot."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.support import import_path, needs, patience

ROOT: Final = Path(__file__).parents[2]
SEARCHED: Final = import_path()

pytestmark = [needs("userns", "cgroup:memory", "cgroup:cpu", "cgroup:pids", "program:python3"), pytest.mark.unprivileged]


def measure(out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "examples" / "measure.py", "--repeat", "3", "-n", "200000", "--out", out]
    env = {**os.environ, "PYTHONPATH": SEARCHED, **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=patience(60))


@needs("module:matplotlib")
def test_it_measures_and_draws(tmp_path: Path) -> None:
    done = measure(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "a generator takes" in done.stdout
    figures = json.loads((tmp_path / "figures.json").read_text())
    a_list, a_generator = (result["estimates"]["memory_peak"]["median"] for result in figures["results"])
    assert a_list > a_generator + (4 << 20), "200,000 numbers at once take 8 MB more"
    with (tmp_path / "runs.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    with (tmp_path / "samples.csv").open(newline="") as file:
        memory = [int(row["memory"]) for row in csv.DictReader(file)]
    assert max(memory) > 32 << 20
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_it_says_so_and_measures(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "matplotlib.py").write_text("raise ImportError\n")
    done = measure(tmp_path, PYTHONPATH=f"{hidden}{os.pathsep}{SEARCHED}")
    assert done.returncode == 0, done.stderr
    assert "pip install 'sandbox[plot]'" in done.stderr
    assert not (tmp_path / "run.png").exists()
