"""The house keeps its order: short files and functions, and imports that go down only."""

import ast

import pytest
from conftest import ROOT

# From the ground up: a file imports from its own floor or from those before it
FLOORS = [
    ["model"],
    ["vitlab.cli"],
    ["vitlab.files", "vitlab.layout"],
    ["vitlab.hub", "vitlab.shards"],
    ["vitlab.settings", "vitlab.catalog", "vitlab.processes"],
    ["vitlab.config"],
    ["vitlab.hardware", "vitlab.models", "vitlab.pt_files", "vitlab.checkpoint_flags"],
    ["vitlab.datasets", "vitlab.pictures", "vitlab.evaluation", "vitlab.attention"],
    ["vitlab.checkpoint"],
    ["vitlab.training", "vitlab.export"],
    ["vitlab.views"],
    ["vitlab.study", "vitlab.speed"],
    ["train", "test", "visualize", "compare", "benchmark", "results", "export", "download", "demos"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(path for pattern in ("*.py", "vitlab/**/*.py", "demos/*.py") for path in ROOT.glob(pattern))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def module(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(name):
    """vitlab.training of vitlab.training.loop; the name itself of a file that is no room's."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "vitlab" else parts[0]


MODULES = {module(path): path for path in FILES}


def imports(tree):
    """The modules of ours that a file imports, wherever it does so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in inside]
        else:
            continue
        yield from (name for name in names if name in MODULES)


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_at_most_nine_scripts():
    assert len(list(ROOT.glob("*.py"))) <= 9


@pytest.mark.parametrize("path", FILES, ids=module)
def test_files_and_functions_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions(TREES[path])}
    assert not {name: length for name, length in lengths.items() if length > 70}


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_go_down_only(path):
    own = room(module(path))
    for name in imports(TREES[path]):
        if room(name) != own:
            assert FLOOR[room(name)] < FLOOR[own], f"{module(path)} imports {name}"


def test_model_stands_alone():
    assert not list(imports(TREES[ROOT / "model.py"]))


def test_no_circles():
    below = {name: set(imports(TREES[path])) - {name} for name, path in MODULES.items()}
    while free := {name for name, needs in below.items() if not needs}:
        below = {name: needs - free for name, needs in below.items() if name not in free}
    assert not below, f"in a circle: {below}"


def test_nothing_is_imported_inside_a_function_but_in_main():
    """main() of a script imports once, after the flags are read: --help need not wait for torch."""
    for path, tree in TREES.items():
        for function in functions(tree):
            if function.name == "main" and path.parent == ROOT:
                continue
            assert not list(imports(function)), f"{module(path)}.{function.name}"
