"""Imports run one way, and ``import untorn`` is light (docs: Layout; style rules 1 and 12)."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import untorn

ROOT = Path(untorn.__file__).parent

#: each layer may import from itself and from those below it:
#: cli -> jobs -> train -> engines -> board -> share -> _core
BELOW = {
    "_core": set(),
    "board": {"share", "_core", "errors"},
    "errors": set(),
    "trees": {"errors"},
    "adapter_registry": {"errors"},
    "share": {"adapter_registry", "trees", "_core", "errors"},
    "adapters": {"adapter_registry", "share", "_core", "errors"},
    "engines": {"board", "share", "_core", "errors"},
    "train": {"trees", "control", "engines", "board", "adapters", "share", "_core", "errors"},
    "control": {"trees", "share", "errors"},
    "torch": {"trees", "train", "engines", "share", "_core", "errors"},
    "jax": {"train", "engines", "_core", "errors"},
    "typing": {"train"},
    "jobs": {"trees", "train", "engines", "adapters", "share", "_core", "errors", ""},
    "cli": {"trees", "control", "jobs", "train", "engines", "adapters", "share", "_core", "errors", ""},
}
#: untorn/__init__.py; what it has of train it imports on first use
BELOW[""] = {"adapters", "share", "errors", "train"}

MODULES = sorted(path for path in ROOT.rglob("*.py"))


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path) -> list[tuple[int, str, bool]]:
    """(line, module, only for type checkers) of each import of this package, in functions too."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "untorn" else [node.module]
            )
        else:
            continue
        found += [(node.lineno, name, id(node) in for_types) for name in names]
    return [entry for entry in found if entry[1].split(".")[0] == "untorn"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    relative = path.relative_to(ROOT)
    own = relative.parts[0].removesuffix(".py") if relative.name != "__init__.py" or len(relative.parts) > 1 else ""
    assert own in BELOW, f"{relative}: which layer is that?"
    for line, module, _ in imports(path):
        target = layer_of(module)
        if target not in BELOW:  # `from untorn import publish`: a name of the root
            target = ""
        assert target == own or target in BELOW[own], f"{relative}:{line}: {own or 'the root'} imports {module}"


def test_modules_do_not_import_in_a_circle():
    names = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in MODULES
    }
    graph = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text())
        # at import time only: what is inside a function runs later
        late = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
            for inner in ast.walk(node)
        }
        graph[name] = set()
        for node in ast.walk(tree):
            if id(node) not in late and isinstance(node, ast.ImportFrom) and (node.module or "").startswith("untorn."):
                # `from package import module` needs the module alone; anything else, what the package itself has
                graph[name] |= {
                    f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in names else node.module
                    for alias in node.names
                }
    graph = {name: targets & graph.keys() - {name} for name, targets in graph.items()}
    done, trail = set(), []

    def visit(name):
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            trail.append(name)
            for target in sorted(graph[name]):
                visit(target)
            trail.pop()
            done.add(name)

    for name in graph:
        visit(name)


def loaded(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after this code."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_untorn_needs_numpy_alone():
    extra = {name.split(".")[0] for name in loaded("import untorn") - loaded("import numpy")}
    foreign = extra - set(sys.stdlib_module_names) - {"numpy", "untorn", "_numpydoc"}
    foreign = {name for name in foreign if not name.startswith("__editable__")}
    assert not foreign
    for heavy in ("multiprocessing", "asyncio", "concurrent", "sklearn", "rich", "click", "matplotlib", "scipy"):
        assert heavy not in extra


def test_sharing_needs_no_multiprocessing():
    code = "import untorn; p = untorn.publish([1]); p.update([2]); p.subscriber().snapshot().value; p.close()"
    modules = loaded(code)
    assert not {"multiprocessing", "untorn.train", "untorn.engines", "untorn.cli"} & modules


def test_train_is_imported_when_it_is_used():
    assert "untorn.train" not in loaded("import untorn")
    modules = loaded("import untorn; untorn.Trainer")
    assert "untorn.train" in modules
    assert not {"sklearn", "rich", "click", "matplotlib", "untorn.cli", "untorn.jobs"} & modules


def test_collecting_the_tests_starts_no_jax():
    """JAX warns at every fork of a process that it has computed in, and most tests fork."""
    code = (
        "import sys, importlib.util\n"
        "for number, path in enumerate(sys.argv[1:]):\n"
        "    spec = importlib.util.spec_from_file_location(f'collected{number}', path)\n"
        "    spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends\n"
    )
    tests = Path(__file__).parents[1]
    files = sorted(path for path in tests.rglob("test_*.py") if "import jax" in path.read_text())
    path = [str(tests), str(tests / "unit" / "train")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    subprocess.run([sys.executable, "-c", code, *map(str, files)], check=True, env=environment)
