"""The languages that the judge knows: how a source becomes a program, and how that is started."""

from __future__ import annotations

from typing import Final

from attrs import frozen


@frozen
class Language:
    """*compile* turns the file *source* into the file *program*; *run* starts that. All are in the working directory."""

    name: str
    source: str
    program: str
    compile: tuple[str, ...]
    run: tuple[str, ...]


_CHECK_PYTHON: Final = "import sys; compile(open(sys.argv[1], 'rb').read(), sys.argv[1], 'exec')"

LANGUAGES: Final = {
    ".c": Language("C", "main.c", "main", ("gcc", "-std=gnu11", "-O2", "-o", "main", "main.c", "-lm"), ("./main",)),
    ".cpp": Language("C++", "main.cpp", "main", ("g++", "-std=c++17", "-O2", "-pthread", "-o", "main", "main.cpp"), ("./main",)),
    ".py": Language("Python", "main.py", "main.py", ("python3", "-I", "-c", _CHECK_PYTHON, "main.py"), ("python3", "-I", "main.py")),
}
