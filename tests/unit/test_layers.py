"""Imports run one way, and ``import untorn`` is light (docs: Layout; style rules 1 and 12)."""

import ast
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
    "descriptors": set(),
    "errors": set(),
    "first_guesses": set(),
    "html": set(),
    "quiet": set(),
    "typevars": set(),
    "trees": {"errors"},
    "adapter_registry": {"errors"},
    "board": {"_core", "descriptors", "errors"},
    "share": {"adapter_registry", "trees", "_core", "descriptors", "first_guesses", "html", "typevars", "errors"},
    "adapters": {"adapter_registry", "share", "_core", "quiet", "errors"},
    "engines": {"board", "share", "_core", "descriptors", "errors"},
    "train": {
        "trees",
        "control",
        "engines",
        "board",
        "adapters",
        "share",
        "_core",
        "descriptors",
        "first_guesses",
        "html",
        "typevars",
        "errors",
        "ray",
    },
    "control": {"trees", "descriptors", "errors"},
    "torch": {"trees", "train", "engines", "share", "_core", "quiet", "typevars", "errors"},
    "jax": {"train", "engines", "_core", "errors"},
    "sklearn": {"errors"},
    "ray": {"engines", "share", "_core", "descriptors", "errors"},
    "typing": {"train"},
    "prometheus": {"control", "share", "errors"},
    "jobs": {"trees", "train", "engines", "adapters", "share", "_core", "errors", ""},
    "__main__": {"cli"},
    "cli": {
        "trees",
        "control",
        "jobs",
        "prometheus",
        "train",
        "engines",
        "adapters",
        "share",
        "_core",
        "first_guesses",
        "errors",
        "",
    },
}
#: untorn/__init__.py; it imports train on first use
BELOW[""] = {"adapters", "share", "errors", "first_guesses", "train"}

MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

#: (module, what it imports late): why the circle that this closes must stay
ALLOWED_LAZY: dict[tuple[str, str], str] = {}

#: what other layers may import of share
DOORS = {"untorn.share", "untorn.share.lowlevel"}


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module) of each import of this package: in functions and for type checkers, too. `from package import
    module` needs the module alone."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.append((node.lineno, name if name in MODULES or name == "untorn._core" else node.module))
    return [(line, module) for line, module in found if module.split(".")[0] == "untorn"]


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name):
    own = layer_of(name)
    assert own in BELOW, f"{name}: which layer is that?"
    for line, module in imports(MODULES[name]):
        assert layer_of(module) in {own, *BELOW[own]}, f"{name}:{line}: {own or 'the root'} imports {module}"


@pytest.mark.parametrize("name", [name for name in MODULES if layer_of(name) != "share"])
def test_share_is_entered_by_its_doors(name):
    for line, module in imports(MODULES[name]):
        assert layer_of(module) != "share" or module in DOORS, f"{name}:{line}: {module} is inside share"


@pytest.mark.parametrize("name", MODULES)
def test_private_names_stay_in_their_module(name):
    """Ruff's SLF001 sees attributes, not imports."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "untorn":
            private = {alias.name for alias in node.names if alias.name.startswith("_")} - {"_core"}
            assert not private, f"{name}:{node.lineno}: {private}"


def test_modules_do_not_import_in_a_circle():
    graph = {name: {module for _, module in imports(path)} - {name} for name, path in MODULES.items()}
    for name, target in ALLOWED_LAZY:
        assert target in graph[name], f"{name} does not import {target} any more: delete the line above"
        graph[name].remove(target)
    done, trail = set(), []

    def visit(name):
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            trail.append(name)
            for target in sorted(graph[name] & graph.keys()):
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


def test_collecting_the_tests_starts_no_jax(jax_ran_at_collection):
    """JAX warns at every fork of a process that it has computed in, and most tests fork. A run of all tests imports all
    of their modules before this."""
    assert not jax_ran_at_collection
