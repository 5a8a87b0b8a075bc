"""The result of a run as JSON, in a file or on standard error."""

from __future__ import annotations

import os
import sys
from typing import Final, Self

from attrs import define

from sandbox import Result, SandboxError, UsageError

_TIMES: Final = ("cpu_time", "user_time", "system_time", "wall_time", "setup_time")
_COUNTS: Final = ("voluntary_switches", "involuntary_switches", "minor_faults", "major_faults", "io_read", "io_written")
_COPIED: Final = ("exit_code", "signal", *_TIMES, "memory_peak", "max_rss", "pids_peak", *_COUNTS, "oom_killed", "syscall")


@define(eq=False)
class Report:
    """Where the result goes. The file is opened before anything is started, so that a bad path costs no run."""

    _fd: int | None = None

    @classmethod
    def to(cls, path: str | None) -> Self:
        """A report to the file *path*; "-" is standard error, None is nowhere. Raises: UsageError."""
        if path is None:
            return cls()
        if path == "-":
            return cls(os.dup(2))
        try:
            return cls(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666))
        except OSError as error:
            raise UsageError(f"--json: {path}: {error.strerror}") from None

    @property
    def is_wanted(self) -> bool:
        """Whether there will be one."""
        return self._fd is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def ended(self, result: Result, code: int) -> None:
        """The program ran; *code* is what this command ends with."""
        facts = {name: getattr(result, name) for name in _COPIED}
        self._write({"status": result.status.value, "command_exit_code": code, "argv": list(result.argv), **facts})

    def failed(self, error: SandboxError, code: int) -> None:
        """No program ran."""
        self._write({"status": "not started", "command_exit_code": code, "error": {"kind": type(error).__name__, "message": str(error)}})

    def _write(self, record: dict[str, object]) -> None:
        if self._fd is None:
            return
        import json

        try:
            with open(self._fd, "w", encoding="utf-8", closefd=False) as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:  # the run is over, its exit code counts
            print(f"sandbox run: warning: the report could not be written: {error.strerror}", file=sys.stderr)
