"""A root directory with the program that leaves things, and looks for them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from sandbox import Tmpfs
from tests.support import patience, why_not

SOURCE = Path(__file__).parent / "programs" / "smuggle.c"
LIMITS: dict[str, Any] = {} if why_not("cgroup:memory") or why_not("cgroup:pids") else {"memory": "64M", "pids": 32}
TMP = Tmpfs("/tmp")
PATIENCE_S = patience(60.0)


def make_root(directory: Path) -> Path:
    """Make *directory*, with /smuggle and nothing else in it."""
    for name in ("dev", "etc", "proc", "sys", "tmp"):
        (directory / name).mkdir(parents=True)
    (directory / "tmp").chmod(0o1777)
    (directory / "etc/passwd").write_text("root:x:0:0::/:/\nuser:x:1000:1000::/:/\n")
    subprocess.run(["gcc", "-O1", "-static", "-o", directory / "smuggle", SOURCE], check=True)
    for path in (directory.parent, directory):
        path.chmod(0o755)
    return directory
