"""The layers of the design, held to: imports point down, packages of L1 never import each other, there is no cycle."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

SOURCE = Path(__file__).parents[2] / "sandbox"

# Each part of the package (its first name below `sandbox`) and its layer. A new part is put here deliberately.
LAYERS = {
    0: {"errors", "_types", "_plan", "_sys", "_undo"},
    1: {"_launch", "ns", "cg", "fs", "sec", "net", "image"},
    # aio is a facade beside container and process, not something built upon them: what they wait for, it has the event loop wait for, and so it
    # takes what is below them (a session, a run, a pump) in the same way. What it takes is gathered in _driven, _runs and _reactor.
    2: {
        "aio", "container", "estimates", "features", "measurements", "measuring", "monitoring", "network", "noise", "pool",
        "process", "_arguments", "_beginning", "_box", "_classic", "_cleaning", "_clone", "_compile", "_driven", "_duplex", "_explain",
        "_files", "_host", "_imaged", "_ids", "_interact", "_keeper", "_leases", "_leaves", "_namespaces", "_networks", "_plot", "_pump", "_reactor",
        "_refusals", "_result", "_run", "_runs", "_session", "_sharing", "_sinks", "_spares", "_spawner", "_spec", "_start", "_started", "_again",
        "_streams", "_tables", "_turns", "_users", "_wiring",
    },
    3: {"pytest_plugin", "cli", "builder", "engine", "keep", "__main__"},
}
LAYER = {part: layer for layer, parts in LAYERS.items() for part in parts}
FACE = "__init__"  # `sandbox` itself: it re-exports what lies below, and L3 stands on it


@frozen
class Import:
    """One import: *module* imports *target* (dotted, a module or a name in one)."""

    module: str
    target: str
    line: int
    typing_only: bool
    late: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"

    @property
    def source_part(self) -> str:
        return part_of(self.module)

    @property
    def target_part(self) -> str:
        return part_of(self.target)


def part_of(dotted: str) -> str:
    parts = dotted.split(".")
    if len(parts) == 1:
        return FACE
    # `from sandbox import Container`: a name of the face. A part that has no layer yet fails a test of its own.
    return parts[1] if parts[1] in LAYER or parts[1].startswith("_") else FACE


class Collector(ast.NodeVisitor):
    """Collect all imports of one module, wherever they stand."""

    def __init__(self, module: str, *, is_package: bool) -> None:
        self.module = module
        self.package = module.split(".") if is_package else module.split(".")[:-1]
        self.found: list[Import] = []
        self.typing_only = False
        self.depth = 0

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self.package[: len(self.package) - node.level + 1] if node.level else []
        stem = ".".join([*base, *([node.module] if node.module else [])])
        for alias in node.names:
            self.add(f"{stem}.{alias.name}", node.lineno)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("import_module", "__import__") and node.args:
            argument = node.args[0]
            self.add(text_of(argument), node.lineno)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        before = self.typing_only
        self.typing_only = before or ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for child in node.body:
            self.visit(child)
        self.typing_only = before
        for child in node.orelse:
            self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    def add(self, target: str, line: int) -> None:
        self.found.append(Import(self.module, target, line, self.typing_only, late=self.depth > 0))


def text_of(argument: ast.expr) -> str:
    """The name of a module as far as it is written down; "?" stands for what is computed."""
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return argument.value
    parts = argument.values if isinstance(argument, ast.JoinedStr) else []
    begins = parts[0].value if parts and isinstance(parts[0], ast.Constant) else ""
    return f"{begins.rpartition('.')[0]}.?" if isinstance(begins, str) and "." in begins else "?"


def imports_of(source: str, module: str, *, is_package: bool = False) -> list[Import]:
    collector = Collector(module, is_package=is_package)
    collector.visit(ast.parse(source))
    return collector.found


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(SOURCE.rglob("*.py")):
        names = path.relative_to(SOURCE.parent).with_suffix("").parts
        yield ".".join(names[:-1] if names[-1] == "__init__" else names), path


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return [found for module, path in modules() for found in imports_of(path.read_text(), module, is_package=path.name == "__init__.py")]


def fault(found: Import) -> str:
    """Say which rule an import breaks; "" for a good one."""
    root = found.target.partition(".")[0]
    if root == "ctypes":
        return "" if found.source_part == "_sys" else "ctypes is for _sys alone"
    if root == "?":
        return "" if found.source_part == FACE else "an import of a computed name escapes this test"
    if root != "sandbox" or found.source_part in (found.target_part, FACE):
        return ""
    if not {found.source_part, found.target_part} <= {*LAYER, FACE}:
        return "a part without a layer: put it into LAYERS"
    source = LAYER[found.source_part]
    if source == 3:
        return _fault_of_l3(found)
    if found.target_part == FACE:
        return "the face of the package stands above it"
    target = LAYER[found.target_part]
    if source == target == 1:
        return "packages of layer 1 do not know of each other, not even their types"
    # A type may be named upwards (an error carries a result), but nothing is loaded.
    return "" if target <= source or found.typing_only else f"layer {source} imports layer {target}"


def _fault_of_l3(found: Import) -> str:
    if found.target_part != FACE and LAYER[found.target_part] == 3:
        return ""
    private = [name for name in found.target.split(".")[1:] if name.startswith("_") and not name.startswith("__")]
    return f"layer 3 uses the public face only, not {private[0]}" if private else ""


def test_every_part_has_a_layer():
    parts = {module.split(".")[1] for module, _ in modules() if "." in module}
    assert parts - LAYER.keys() == set(), "put the new part into LAYERS"


def test_imports_keep_to_the_layers(imports: list[Import]):
    faults = [f"{found}: {why}" for found in imports if (why := fault(found))]
    assert not faults, "\n".join(faults)


def test_modules_import_each_other_without_a_cycle(imports: list[Import]):
    known = {module for module, _ in modules()}
    graph: dict[str, set[str]] = {module: set() for module in known}
    for found in imports:
        target = found.target if found.target in known else found.target.rpartition(".")[0]
        if target in known and target != found.module and not (found.typing_only or found.late):
            graph[found.module].add(target)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize(
    ("module", "source", "why"),
    [
        ("sandbox.ns.mount", "import ctypes", "ctypes"),
        ("sandbox.ns.mount", "def f():\n    from sandbox.cg import Limits", "layer 1"),
        ("sandbox.ns.mount", "from ..cg import Limits", "layer 1"),
        ("sandbox.ns.mount", "if TYPE_CHECKING:\n    from sandbox.cg import Limits", "layer 1"),
        ("sandbox.errors", "import sandbox.process", "layer 0 imports layer 2"),
        ("sandbox.cg.v1", "from sandbox import Container", "face"),
        ("sandbox.cg.v1", "importlib.import_module(name)", "computed"),
        ("sandbox.cg.v1", "importlib.import_module('sandbox.container')", "layer 1 imports layer 2"),
        ("sandbox.cg.v1", "importlib.import_module(f'sandbox.ns.{name}')", "layer 1"),
        ("sandbox.cg.v1", "importlib.import_module(f'{name}.ns')", "computed"),
        ("sandbox.cg.v1", "import sandbox._new", "without a layer"),
        ("sandbox.cli", "from sandbox._sys import mount", "not _sys"),
        ("sandbox.cli", "from sandbox.container import _plan_of", "not _plan_of"),
    ],
)
def test_a_breach_is_seen(module: str, source: str, why: str):
    (found,) = imports_of(source, module)
    assert why in fault(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sandbox._sys.calls", "import ctypes"),
        ("sandbox.errors", "if TYPE_CHECKING:\n    from sandbox.process import Result"),
        ("sandbox.container", "from sandbox.cg import Limits"),
        ("sandbox.cg.v1", "from . import files"),
        ("sandbox.cg", "import_module(f'sandbox.cg.{name}')"),
        ("sandbox.cli", "import sandbox"),
        ("sandbox.cli", "from sandbox import Container"),
        ("sandbox.cli", "from sandbox.cg import Limits"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str):
    (found,) = imports_of(source, module)
    assert fault(found) == ""
