"""The house's plan: imports point one way, nothing imports in a circle, and no file or function grows without end."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each package may import those of lower floors, and itself. `zoo` itself only says where the demo family lies.
FLOORS = {
    "zoo.__init__": 0,
    "fusion_kernels": 0,
    "server": 1,
    "evaluation": 2,
    "training": 2,
    "zoo": 3,
    "bench": 3,
    "logit_fusion": 4,
}
PACKAGES = ("logit_fusion", "server", "fusion_kernels", "evaluation", "training", "zoo", "bench")
COMMANDS = ("bench.command.bench", "evaluation.cli.evaluate", "training.cli.train")
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60


def files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def modules() -> dict[str, Path]:
    return {module_of(path): path for path in files()}


def imported(path: Path, whenever: bool) -> Iterator[str]:
    """The project's modules that a file imports: `whenever`, or when it is loaded (those for types alone are not)."""
    pending: list[ast.AST] = [tree(path)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (
                name if (name := f"{node.module}.{alias.name}") in modules() else node.module for alias in node.names
            )
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if whenever or not (later or for_types):
            pending += ast.iter_child_nodes(node)


def floor(module: str) -> int:
    package = module.partition(".")[0]
    return FLOORS["zoo.__init__" if module == "zoo" else package]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down(package: str) -> None:
    wrong = [
        f"{module_of(path)} imports {other}"
        for path in files()
        if path.relative_to(ROOT).parts[0] == package
        for other in imported(path, whenever=True)
        if (top := other.partition(".")[0]) in ("tests", *PACKAGES)
        and top != package
        and (top == "tests" or floor(other) >= floor(module_of(path)))
    ]
    assert not wrong


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {
        module: {other for other in imported(path, whenever=False) if other in modules() and other != module}
        for module, path in modules().items()
    }
    # A package's own `__init__` gathers what its modules offer; it is loaded before them, whoever asks.
    for module in graph:
        graph[module] = {other for other in graph[module] if not module.startswith(other + ".")}
    TopologicalSorter(graph).prepare()


def test_no_part_of_the_server_stands_on_one_that_stands_on_it() -> None:
    parts: dict[str, set[str]] = {}
    for module, path in modules().items():
        if module.startswith("server."):
            part = ".".join(module.split(".")[:2])
            others = {".".join(other.split(".")[:2]) for other in imported(path, whenever=True)}
            parts.setdefault(part, set()).update(
                other for other in others if other.startswith("server.") and other != part
            )
    TopologicalSorter(parts).prepare()


def test_no_file_is_too_long() -> None:
    lengths = {module_of(path): len(path.read_text().splitlines()) for path in files()}
    assert {module: length for module, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_too_long() -> None:
    found = [
        f"{module_of(path)}.{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in files()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not found


def test_what_is_raised_is_said() -> None:
    """A public function that raises has a docstring that names what.

    Docstrings of routes and commands are texts for users; those of the functions inside another are its own business.
    """
    silent = []
    for path in files():
        for node in own_nodes(tree(path)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            name = f"{module_of(path)}.{node.name}"
            if name in COMMANDS or any(".post(" in ast.unparse(decorator) for decorator in node.decorator_list):
                continue
            raised = {error for inner in own_nodes(node) if isinstance(inner, ast.Raise) and (error := _name_of(inner))}
            if raised and "Raises:" not in (ast.get_docstring(node) or ""):
                silent.append(f"{name} raises {', '.join(sorted(raised))}")
    assert not silent


def own_nodes(outer: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.AST]:
    """What is in a module or a function, without what is in the functions in it."""
    pending: list[ast.AST] = [*outer.body]
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += ast.iter_child_nodes(node)


def _name_of(node: ast.Raise) -> str | None:
    """The exception that a statement names; one that is raised again, or made elsewhere, has none."""
    error = node.exc.func if isinstance(node.exc, ast.Call) else None
    name = error.id if isinstance(error, ast.Name) else None
    return name if name is not None and name.endswith(("Error", "Exception")) else None
