"""Write docs/reference/nested.md by running: ``python -m tests.nested.table [--more "TITLE=FILE.json"]... >docs/reference/nested.md``.

As root, with docker, dockerd and bwrap in PATH; takes two minutes. ``--json`` prints what was found instead, for a table with another host's:
``tests/vm/run 6.12 -- /usr/bin/python3 -m tests.nested.table --json``, where Docker confines by AppArmor if apparmor_parser is in PATH.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.nested import outer
from tests.support import why_not

FEATURES: Final = (
    "run(['echo', 'hi'])",
    "memory=",
    "pids=",
    "subids=True",
    "Bind, writable",
    "a directory as root, overlay",
    "landlock=True",
    "Security(nesting=True)",
    "tty",
)
HEAD: Final = """# Inside other containers

Made by `python -m tests.nested.table`, which starts each of these outer containers and runs `tests/vm/features.py` inside: every cell is a real
container in a container, under `strict=True`. Not edited by hand. `tests/nested/test_nested.py` holds the main ones.

**In short**: `docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined` lets everything but limits and a range of ids work, for
root and for any other user, without a single capability; `subids=True` takes a range in the outer container's /etc/subuid; limits take `--cgroupns=host --volume /sys/fs/cgroup:/sys/fs/cgroup` as well, and to be root. Where Docker confines by
AppArmor (Ubuntu, Debian; below on Linux 6.12), add `--security-opt apparmor=unconfined`. `--cap-add SYS_ADMIN` is not needed; with it, root's containers get ids of their
own, and then what is mounted must lie on a file system that can be id-mapped: a volume, or a tmpfs, but not the overlay that Docker's own root is.

What the flags open: without Docker's filter, programs of the **outer** container reach more of the kernel; without its masks they see `/proc/kcore`,
`/proc/keys` and the like as far as their rights go. Containers of this library inside have their own filter and their own masks in any case.

"works"; a number: see below, what is missing of it, or the error that the caller gets, word for word (paths shortened).
"""


def examine(only: Sequence[str]) -> dict[str, dict[str, str]]:
    """Try all whose title contains one of *only*; by title, feature by feature."""
    if reason := outer.usable() or why_not("program:dockerd") or why_not("program:docker") or why_not("program:bwrap"):
        raise SystemExit(f"table: {reason}")
    found: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="nested-") as scratch, outer.daemon(Path(scratch)) as docker:
        for each in (each for each in outer.ALL if any(word in each.title for word in only)):
            print(each.title, file=sys.stderr)
            try:
                found[each.title] = outer.features(each, FEATURES, docker)
            except RuntimeError as error:
                found[each.title] = dict.fromkeys(FEATURES, f"not started: {' '.join(str(error).split())}")
    return found


def table(heading: str, found: dict[str, dict[str, str]], notes: list[str]) -> list[str]:
    """One row for each outer container; messages as numbered notes."""
    lines = ["", f"## {heading}", "", "| outer container | " + " | ".join(f"`{name}`" for name in FEATURES) + " |", "| --- |" + " --- |" * len(FEATURES)]
    for title, cells in found.items():
        lines.append(f"| {title} | " + " | ".join(_cell(cells.get(name, "not tried"), notes) for name in FEATURES) + " |")
    return lines


def _cell(text: str, notes: list[str]) -> str:
    kind, _, message = text.partition(": ")
    if not message:
        return text
    message = re.sub(r"/sys/fs/cgroup/\S*sandbox-[\w-]+", "/sys/fs/cgroup/...", message)
    message = re.sub(r"'/tmp/tmp\w+'", "'/tmp/...'", message)
    message = re.sub(r"the cgroup controller '\w+'", "the cgroup controller '...'", message)
    if message not in notes:
        notes.append(message)
    return f"{kind} ({notes.index(message) + 1})"


def _host() -> str:
    import os

    from sandbox import cg

    return f"Linux {'.'.join(os.uname().release.split('.')[:2])}, {cg.detect().mode.value} cgroups"


def main(arguments: Sequence[str]) -> int:
    """Print the page, or with --json what was found here."""
    parser = argparse.ArgumentParser(prog="python -m tests.nested.table")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--more", action="append", default=[], metavar="FILE.json", help="what --json has printed on another host")
    parser.add_argument("--only", action="append", metavar="TEXT", help="outer containers with this in their command; again for more")
    options = parser.parse_args(arguments)
    here = {"host": _host(), "found": examine(options.only or [""])}
    if options.json:
        json.dump(here, sys.stdout, indent=1)
        return 0
    notes: list[str] = []
    lines = [HEAD.rstrip("\n")]
    for host in (here, *(json.loads(Path(path).read_text()) for path in options.more)):
        lines += table(host["host"], host["found"], notes)
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
