"""Which of the host's files a test inside a container needs: its interpreter, what that imports from, and the project."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from typing import Final

from sandbox import Bind, UsageError

__all__ = ["binds", "of_interpreter"]

# What a view of the host shows anyway, and what every container has of its own.
_VIEW: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_OWN: Final = ("/proc", "/sys", "/dev")
_MAX_LINKS: Final = 40  # as the kernel: path_resolution(7)


def of_interpreter() -> Iterator[str]:
    """What this interpreter needs to start and to import all that it can import here, wherever that lies."""
    yield from (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)
    yield from _links(sys.executable)
    yield from (entry for entry in sys.path if entry)
    yield from (path for name in ("stdlib", "platstdlib", "purelib", "platlib") if (path := sysconfig.get_path(name)))
    yield from _of_modules()
    yield from _mapped()


def _links(path: str) -> Iterator[str]:
    """A virtual environment's python is a link to a link to an interpreter: each of them, and the last."""
    for _ in range(_MAX_LINKS):
        yield path
        if not os.path.islink(path):
            return
        path = os.path.join(os.path.dirname(path), os.readlink(path))


def _of_modules() -> Iterator[str]:
    """Packages that are found by a hook instead of sys.path, as some editable installs do."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if "." not in name and isinstance(file, str) and os.path.isabs(file):
            yield os.path.dirname(file) if hasattr(module, "__path__") else file


def _mapped() -> Iterator[str]:
    """The directories of shared libraries that are loaded: of an interpreter that was put somewhere by itself."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        files = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if line.count("/")}
    yield from sorted({os.path.dirname(file) for file in files if os.path.isfile(file) and ".so" in os.path.basename(file)})


def binds(paths: Iterable[str], *, taken: Iterable[str]) -> list[Bind]:
    """Read-only binds that show *paths*, each at its own place (with links on the way, also at its real one).

    What the view of the host shows anyway, and what does not exist, is left out. *taken*: targets that the caller mounts on.
    Raises: UsageError: one of them is the host's whole tree, or another that cannot be shown.
    """
    wanted = {os.path.normpath(path) for found in paths for path in (os.path.abspath(found), os.path.realpath(found))}
    targets: list[str] = []
    # By components, so that a directory comes before what lies in it.
    for path in sorted(wanted, key=lambda path: path.split("/")):
        if not os.path.exists(path) or _below(path, (*_VIEW, *targets, *taken)):
            continue
        if path == "/" or _below(path, _OWN):
            raise UsageError(f"inside: the test needs {path} of the host, which cannot be shown; move the project into a directory of its own")
        targets.append(path)
    return [Bind(path, path, read_only=True) for path in targets]


def _below(path: str, directories: Iterable[str]) -> bool:
    return any(path == directory or path.startswith(f"{directory}/") for directory in directories)
