"""Grade a C program against tests, in a pool: ``python examples/grader.py PROGRAM.c TESTS`` (a directory with NAME.in and NAME.out).

The compiler gets a container that then ends. The tests run side by side, each in a container in which nothing of another test is left;
the compiled program comes to them as an open file, so nothing has to be copied in. The exit code is the number of tests that failed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from sandbox import CommandError, Pool, Result, Status, Tmpfs

LIMITS: dict[str, Any] = {"cpu_time": 1.0, "timeout": 3.0, "memory": "64M", "pids": 1, "output_limit": "1M"}
PROGRAM = 3  # its descriptor inside
WORDS = dict.fromkeys((Status.TIMEOUT, Status.CPU_LIMIT), "too slow")
WORDS |= {Status.MEMORY_LIMIT: "too much memory", Status.OUTPUT_LIMIT: "too much output", Status.SYSCALL_DENIED: "forbidden system call"}


def compiled(pool: Pool, source: bytes) -> int:
    """Compile *source*; return a descriptor of the program. Raises: CommandError with the compiler's words."""
    with pool.lease() as box:
        box.exec(["gcc", "-x", "c", "-O2", "-static", "-o", "/tmp/program", "-"], input=source, timeout=20.0, check=True)
        program = box.container.read_bytes("/tmp/program")
    with open(os.memfd_create("program"), "wb") as file:
        file.write(program)
        file.flush()
        return os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)  # what is open for writing cannot be run


def verdict(result: Result, expected: bytes) -> str:
    """Say what became of one test; "" when it passed."""
    if not result.ok:
        return WORDS.get(result.status, f"runtime error ({result.exit_code if result.signal is None else f'signal {result.signal}'})")
    return "" if result.stdout.split() == expected.split() else "wrong answer"


def main(source: str, tests: str) -> int:
    """Print a line for each test."""
    inputs = sorted(Path(tests).glob("*.in"))
    with Pool(read_only=True, mounts=[Tmpfs("/tmp", size="64M")], security="strict", memory="256M", pids=64) as pool:
        try:
            program = compiled(pool, Path(source).read_bytes())
        except CommandError as error:
            print("compile error:", error)
            return len(inputs)
        jobs = ({"argv": [f"/proc/self/fd/{PROGRAM}"], "input": path.read_bytes(), "pass_fds": {PROGRAM: program}} for path in inputs)
        verdicts = [verdict(result, path.with_suffix(".out").read_bytes()) for path, result in zip(inputs, pool.map(jobs, **LIMITS), strict=True)]
    for path, word in zip(inputs, verdicts, strict=True):
        print(path.stem, word or "passed")
    return sum(map(bool, verdicts))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
