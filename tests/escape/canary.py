"""The host that attacks are aimed at: a tree of files that nobody may change, and a secret that nobody may read."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import sys
from pathlib import Path

from attrs import define, field

LAUNCHER = Path(__file__).parents[2] / "sandbox" / "_launch" / "launcher"


@define
class Canary:
    """A tree below *path*, and what it looked like when it was made."""

    path: Path
    secret: str = field(factory=lambda: f"canary-{secrets.token_hex(16)}")
    before: dict[str, str] = field(factory=dict)

    @classmethod
    def make(cls, path: Path) -> Canary:
        canary = cls(path)
        path.mkdir(mode=0o755)
        (path / "file").write_text("a file of the host\n")
        (path / "secret").write_text(canary.secret)
        (path / "secret").chmod(0o600)
        os.mkfifo(path / "fifo", 0o600)
        (path / "directory" / "below").mkdir(parents=True)
        (path / "directory" / "below" / "file").write_text(canary.secret)
        (path / "directory" / "set-ids").write_text("#!/bin/sh\n")
        (path / "directory" / "set-ids").chmod(0o6750)
        (path / "link").symlink_to("directory/below/file")
        # Whoever gets here may do as he likes: what keeps programs from it is to be their walls alone.
        for name in (".", "file", "directory", "directory/below", "directory/below/file"):
            (path / name).chmod(0o777 if (path / name).is_dir() else 0o666)
        for name, _ in sorted(canary._look().items(), reverse=True):
            if name.startswith(str(path)):
                os.utime(name, ns=(1_000_000_007, 1_000_000_009), follow_symlinks=False)
        canary.before = canary._look()
        return canary

    def changes(self) -> list[str]:
        """What is not as it was: names, kinds, modes, owners, times and contents, of the tree and of the programs that run containers."""
        after = self._look()
        names = sorted(self.before.keys() | after.keys())
        return [f"{name}: {self.before.get(name)} -> {after.get(name)}" for name in names if self.before.get(name) != after.get(name)]

    def is_told_by(self, *texts: bytes) -> bool:
        """Whether the secret stands in one of *texts*."""
        return any(self.secret.encode() in text for text in texts)

    def _look(self) -> dict[str, str]:
        found = {str(self.path): _describe(self.path)}
        for directory, folders, files in os.walk(self.path):
            found |= {name: _describe(Path(name)) for name in (os.path.join(directory, entry) for entry in [*folders, *files])}
        return found | {str(program): _describe(program) for program in (Path(sys.executable).resolve(), LAUNCHER) if program.exists()}


def _describe(path: Path) -> str:
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    content = os.readlink(path) if kind == stat.S_IFLNK else hashlib.sha256(path.read_bytes()).hexdigest() if kind == stat.S_IFREG else ""
    return f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid} {status.st_mtime_ns} {content}"
