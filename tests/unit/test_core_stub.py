"""The stub of the extension says what the built module has, and the module is one that can be made again."""

import gc
import importlib.util
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import BuiltinFunctionType, MethodDescriptorType, ModuleType

import pytest

import untorn
from untorn import _core

#: accepted reports of stubtest: the stub names the buffer protocol, which Python code sees from 3.12 on
ALLOWED = [] if sys.version_info >= (3, 12) else [r"untorn\._core\.\w+\.__buffer__"]

#: the stub needs nothing else of the package and its libraries, and reading them takes half a minute
CONFIG = """
[mypy]
[mypy-numpy.*]
follow_imports = skip
[mypy-untorn.*]
follow_imports = skip
[mypy-untorn.errors]
follow_imports = normal
"""


def test_stub_is_the_module(tmp_path: Path) -> None:
    allowed, config = tmp_path / "allowed", tmp_path / "mypy.ini"
    config.write_text(CONFIG)
    allowed.write_text("\n".join(ALLOWED))
    # typeshed's marks of layout (PEP 800) are for classes that somebody may inherit from together
    command = [sys.executable, "-m", "mypy.stubtest", "untorn._core", "--ignore-disjoint-bases"]
    result = subprocess.run(
        [*command, "--allowlist", str(allowed), "--mypy-config-file", str(config)],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(Path(untorn.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_function_has_a_signature_to_compare() -> None:
    owners = [_core, *(value for value in vars(_core).values() if isinstance(value, type))]
    found = {
        f"{owner.__name__}.{name}": value.__text_signature__
        for owner in owners
        for name, value in vars(owner).items()
        if isinstance(value, BuiltinFunctionType | MethodDescriptorType)
    }
    assert len(found) > 50
    assert [name for name, signature in found.items() if signature is None] == []


def module_made_again() -> ModuleType:
    spec = importlib.util.find_spec("untorn._core")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_module_has_types_of_its_own_and_lets_them_go() -> None:
    again = module_made_again()
    assert again.Attachment is not _core.Attachment
    assert again.StatusError is not _core.StatusError
    watch = again.Watch()
    with pytest.raises(TypeError, match="Attachment"):
        watch.wait({_core.Watch(): 0}, 0.0)
    kept = [weakref.ref(again), weakref.ref(again.Attachment), weakref.ref(again.StatusError)]
    del again
    gc.collect()
    assert kept[0]() is not None, "an object of a class keeps the module"
    del watch
    gc.collect()
    assert [reference() for reference in kept] == [None, None, None]
