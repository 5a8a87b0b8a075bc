"""Write docs/reference/hosts.md from what `tests.vm.features` found: ``python -m tests.vm.table "NAME=FILE.json" ...``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEAD = """# Which host offers what

Made by `tests/vm/hosts`, which runs `tests/vm/features.py` on each of these hosts: every cell is a real container with a real program that was
asked for that feature, under `strict=True`. Not edited by hand.

"works"; a number: see below, what is missing of it, or the error that the caller gets, word for word (paths shortened).
"""


def table(found: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """One column for each host, one row for each feature; messages as numbered notes."""
    notes: list[str] = []
    lines = [HEAD, "| feature | " + " | ".join(_title(name, host) for name, host in found) + " |", "| --- |" + " --- |" * len(found)]
    features = list(dict.fromkeys(feature for _, host in found for feature in host["features"]))
    for feature in features:
        cells = [_cell(host["features"].get(feature, "not tried"), notes) for _, host in found]
        lines.append(f"| `{feature}` | " + " | ".join(cells) + " |")
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]
    return "\n".join(lines) + "\n"


def _title(name: str, host: dict[str, Any]) -> str:
    return f"{name}, Linux {'.'.join(host['kernel'].split('.')[:2])}"


def _cell(text: str, notes: list[str]) -> str:
    if text == "works":
        return text
    kind, _, message = text.partition(": ")
    message = re.sub(r"/sys/fs/cgroup/\S*sandbox-[\w-]+", "/sys/fs/cgroup/...", message)
    message = re.sub(r"/sys/fs/cgroup/(\w+)/\.\.\.", "/sys/fs/cgroup/...", message).replace("|", "\\|")
    message = re.sub(r"'/tmp/tmp\w+'", "'/tmp/...'", message)
    if message not in notes:
        notes.append(message)
    return f"{kind} ({notes.index(message) + 1})"


def main(arguments: Sequence[str]) -> int:
    """Print the page."""
    found = [(name, json.loads(Path(path).read_text())) for name, _, path in (argument.rpartition("=") for argument in arguments)]
    sys.stdout.write(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
