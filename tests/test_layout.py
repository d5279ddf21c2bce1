"""The rooms: imports go strictly down, heavy libraries wait, files stay small, the README's tree is the tree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "collapsewatch": "collapsewatch",
    "trainer": "collapsewatch.trainer",
    "dashboards": "collapsewatch.dashboards",
}
LAYERS = (
    "records plugins schemas theme advice imported trainers selftest",
    "formats structure detectors interventions journal combine curves levels marks words rollouts schedules",
    "shares cells views head capability",
    "scalars",
    "importers database probe measure supervisor course",
    "merge rows replay fixed losses",
    "aliases store queries tables verdict",
    "samples offenders slices reading",
    "monitor report ledger",
    "findings follow steps checkpoints calibrate loop",
    "summary callback dashboards page",
    "trainer watch verl",
    "launch",
    "cli",
    "__main__",
)
"""Rooms (a module or a package) from the bottom up; a room imports only from layers below its own, and from itself."""
NEIGHBOURS = {("formats", "structure"), ("structure", "formats")}
"""On one layer by design: a format parses a turn, a structure judges what was parsed."""
LAYER = {room: height for height, rooms in enumerate(LAYERS) for room in rooms.split()}
FOLDERS = ("collapsewatch", "trainer", "dashboards", "examples", "benchmarks")
CODE = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def modules() -> dict[str, tuple[Path, str]]:
    """Every module of the package by name, with its file and the package that relative imports start from."""
    found = {}
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = [package, *path.relative_to(ROOT / folder).with_suffix("").parts]
            parent = ".".join(parts[:-1])
            found[parent if parts[-1] == "__init__" else ".".join(parts)] = (path, parent)
    return found


MODULES = modules()


def nodes(tree: ast.AST, runtime: bool) -> Iterator[ast.AST]:
    """All nodes; with `runtime`, those executed when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if runtime and (typing_only or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            continue
        yield node
        yield from nodes(node, runtime)


def imported(module: str, runtime: bool = False) -> set[str]:
    """The modules of ours that a module imports, absolutely or relatively."""
    path, package = MODULES[module]
    found = set()
    for node in nodes(ast.parse(path.read_text()), runtime):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names]
        else:
            continue
        found |= {name for name in names if name in MODULES}
    return found - {module}


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_its_layer() -> None:
    assert {room(module) for module in MODULES if module != "collapsewatch"} == set(LAYER)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"collapsewatch"}))
def test_imports_go_strictly_down(module: str) -> None:
    for target in imported(module) - {"collapsewatch"}:  # the package itself holds the version and imports on demand
        down = LAYER[room(target)] < LAYER[room(module)]
        assert down or room(target) == room(module) or (room(module), room(target)) in NEIGHBOURS, (
            f"{module} imports {target}, which does not lie below it"
        )


def test_the_reading_of_imports_sees_what_python_sees() -> None:
    assert imported("collapsewatch.report") >= {
        "collapsewatch.queries",
        "collapsewatch.importers",
        "collapsewatch.records",
    }
    assert imported("collapsewatch.trainer.environments.chain") == {
        "collapsewatch.records",
        "collapsewatch.trainer.environments.base",
    }
    assert "collapsewatch.formats.base" in imported("collapsewatch.formats")
    assert "collapsewatch.formats.base" not in imported("collapsewatch.formats", runtime=True)  # for typing only


def test_nothing_imports_in_a_circle() -> None:
    order = TopologicalSorter({module: imported(module, runtime=True) for module in MODULES})
    assert set(order.static_order()) == set(MODULES)  # raises CycleError with the circle


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("collapsewatch", "torch transformers trl dash plotly scipy.stats duckdb collapsewatch.cli"),
        ("collapsewatch.report", "torch transformers dash plotly"),
        ("collapsewatch.page", "torch transformers dash plotly.graph_objs"),
        ("collapsewatch.monitor", "torch transformers dash plotly"),
        ("collapsewatch.dashboards.app", "torch transformers trl collapsewatch.trainer collapsewatch.callback"),
    ],
)
def test_what_an_import_must_not_pull_in(module: str, never: str) -> None:
    code = f"import sys, {module}; print([name for name in {never.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 300, "split it by what changes together"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or 0) - node.lineno + 1
            assert size <= 60, f"{node.name} has {size} lines"


def test_only_the_composition_roots_import_inside_functions() -> None:
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "PLC0415" in lint["select"]
    exempt = {pattern for pattern, rules in lint["per-file-ignores"].items() if "PLC0415" in rules}
    assert exempt == {"collapsewatch/__init__.py", "collapsewatch/cli.py", "tests/*"}
    assert not [path for path in CODE if "noqa: PLC0415" in path.read_text()]


def test_every_subpackage_is_installed() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(setup["packages"]) == {parent for _, parent in MODULES.values()}


def test_the_readme_tree_is_the_tree() -> None:
    (block,) = re.findall(r"```text\n(collapsewatch/\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    listed, folders = [], []
    for line in block.splitlines():
        indent, name, said = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()  # type: ignore[union-attr]
        folders = folders[: len(indent) // 2]
        if name.endswith("/"):
            folders.append(name)
        else:
            assert said, f"{name} has no description"
            listed.append("".join([*folders, name]))
    kinds = ("*.py", "*.sql", "*.toml", "*.jinja", "*.css", "*.js")
    real = {str(p.relative_to(ROOT)) for folder in FOLDERS for kind in kinds for p in (ROOT / folder).rglob(kind)}
    assert sorted(listed) == sorted(set(listed))
    assert (real - set(listed), set(listed) - real) == (set(), set())  # (not in the README, not in the tree)
