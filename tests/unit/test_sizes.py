"""No function over 60 lines, no module over 500: what is longer is two things."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = [path for part in ("sandbox", "tests", "benchmarks", "examples") for path in sorted((ROOT / part).rglob("*.py"))]
FUNCTION_LINES = 60
MODULE_LINES = 500


def functions(tree: ast.AST) -> list[tuple[str, int]]:
    """Name each function and count its lines, from `def` to its end."""
    found = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [(node.name, (node.end_lineno or node.lineno) - node.lineno + 1) for node in found]


def test_no_function_is_too_long():
    long = [
        f"{path.relative_to(ROOT)}: {name}: {lines} lines"
        for path in SOURCES
        for name, lines in functions(ast.parse(path.read_text()))
        if lines > FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def test_no_module_is_too_long():
    long = [f"{path.relative_to(ROOT)}: {lines} lines" for path in SOURCES if (lines := len(path.read_text().splitlines())) > MODULE_LINES]
    assert not long, "\n".join(long)


def test_lines_are_counted_from_def_to_end():
    assert functions(ast.parse("@decorated\ndef f():\n    '''two\n    lines'''\n    return 1\n")) == [("f", 4)]


def test_there_is_something_to_measure():
    assert any(path.is_relative_to(ROOT / "sandbox") for path in SOURCES)
