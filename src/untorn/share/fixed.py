"""The structure that a channel of ``publish(..., fixed=True)`` keeps from one version to the next."""

from __future__ import annotations

from untorn.trees import CONTAINERS, Path, Spec, mismatch, names_of, path_of

__all__ = ["check_structure"]

#: the libraries whose values are arrays with a fixed shape; tables, sets and sparse matrices may grow
_ARRAYS = frozenset({"numpy", "torch", "jax", "ml_dtypes"})


def check_structure(label: str, expected: Spec, found: Spec, at: Path = ()) -> None:
    """Raise ValueError, which names the place, if two trees differ in containers, keys, types, dtypes or shapes.

    The length of a text, the size of an int, the strides of an array, the order of the keys and the content of a table
    or set may change.
    """
    difference = mismatch(expected, found, _same, at)
    if difference is None:
        return
    path, before, after = difference
    raise ValueError(
        f"channel {label!r} was published with fixed=True: {path_of(path)}: expected {_described(before)}, found "
        f"{_described(after)}. Nothing was published; for another structure publish without fixed"
    )


def _same(expected: Spec, found: Spec) -> bool:
    kinds = {"int" if spec.kind == "bigint" else spec.kind for spec in (expected, found)}
    if len(kinds) != 1:
        return False
    kind = kinds.pop()
    if kind == "array":
        return bool(expected.detail[:2] == found.detail[:2])
    if kind == "numpy":
        return bool(expected.detail == found.detail)
    if kind == "adapter":
        return _same_foreign(expected, found)
    return kind != "pickle" or bool(expected.detail == found.detail)


def _same_foreign(expected: Spec, found: Spec) -> bool:
    name: str = expected.detail[0]
    if name != found.detail[0]:
        return False
    if name.partition(".")[0] not in _ARRAYS:
        return True
    return bool(expected.detail == found.detail) and all(map(_same, expected.children, found.children))


def _described(spec: Spec) -> str:
    if spec.kind == "array":
        dtype, shape, _ = spec.detail
        return f"an array of {dtype} and shape {shape}"
    if spec.kind == "numpy":
        return f"a scalar of {spec.detail}"
    if spec.kind in ("list", "tuple"):
        return f"a {spec.kind} of {spec.detail}"
    if spec.kind in CONTAINERS:
        return f"a {spec.kind} of {', '.join(map(repr, names_of(spec)))}"
    if spec.kind == "adapter":
        name: str = spec.detail[0]
        is_array = name.partition(".")[0] in _ARRAYS
        parts = [_described(child) for child in spec.children if child.kind == "array" and is_array]
        return f"a {name}" + (f" over {', '.join(parts)}" if parts else "")
    return {"none": "None", "bigint": "an int", "int": "an int", "pickle": "a pickle"}.get(spec.kind, f"a {spec.kind}")
