"""The threat model names a test for each promise: those tests are there."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "docs" / "design" / "threat-model.md"


def test_every_promise_names_tests_that_exist() -> None:
    """A promise whose test was renamed or removed is a promise without one."""
    lines = MODEL.read_text().splitlines()
    rows = [line for line, below in pairwise(lines) if line.startswith("| ") and "| ---" not in (line[:5], below[:5])]
    assert len(rows) > 25
    known = {name for path in HERE.parent.rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    for row in rows:
        assert "`test_" in row or "`nothing_left`" in row, row
    named = set(re.findall(r"`(test_\w+)`", MODEL.read_text()))
    assert named <= known, sorted(named - known)
