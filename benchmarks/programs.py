"""Compile what the benchmarks run: the floor, the payloads, and a root directory that holds nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import frozen

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT_DIRECTORIES = ("dev", "etc", "proc", "sys", "tmp")


@frozen
class Programs:
    """Paths on the host. Inside *root* the payloads are ``/true`` and ``/work``; *scratch* is for whatever else is needed."""

    floor: str
    true: str
    work: str
    root: str
    scratch: str


@contextmanager
def compiled() -> Iterator[Programs]:
    """Compile everything into a temporary directory, removed at the end.

    Needs: a C compiler (``$CC``, or cc) and a C library that can be linked statically.
    Raises: RuntimeError with the compiler's words.
    """
    compiler = os.environ.get("CC", "cc")
    if shutil.which(compiler) is None:
        raise RuntimeError(f"no C compiler: {compiler} is not in PATH; install gcc, or set CC")
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as scratch:
        os.chmod(scratch, 0o755)  # containers' users look at it too
        root = os.path.join(scratch, "root")
        for name in ROOT_DIRECTORIES:
            os.makedirs(os.path.join(root, name))
        programs = Programs(os.path.join(scratch, "floor"), os.path.join(root, "true"), os.path.join(root, "work"), root, scratch)
        _compile(compiler, "floor.c", programs.floor)
        _compile(compiler, "true.c", programs.true, "-nostdlib")
        _compile(compiler, "work.c", programs.work)
        yield programs


def _compile(compiler: str, source: str, target: str, *flags: str) -> None:
    command = [compiler, "-O2", "-Wall", "-Wextra", "-static", *flags, "-o", target, os.path.join(HERE, source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"cannot compile {source}:\n{done.stderr}")
