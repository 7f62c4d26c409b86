"""scikit-learn's estimators as plain values: published without pickle, and made again by each reader.

::

    estimator ── state_of ──> a tree of arrays, numbers, text ── publish, subscribe ──> estimator_of ──> an equal one

    >>> import numpy as np, untorn
    >>> from sklearn.linear_model import LinearRegression
    >>> from untorn.sklearn import estimator_of, state_of
    >>> model = LinearRegression().fit(np.arange(6.0).reshape(-1, 1), np.arange(6.0))
    >>> with untorn.publish(state_of(model)) as publisher:
    ...     reader = publisher.subscriber()                       # in any process
    ...     reader.cached(estimator_of).predict([[10.0]]).round(6)       # made once per version and process
    array([10.])

Reading imports modules of scikit-learn, and makes objects of its classes, and of no others: unlike a pickle, a state
cannot run other code. As for pickles of estimators, publisher and readers need the same version of scikit-learn.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from untorn.errors import FormatError, UnsupportedTypeError

__all__ = ["estimator_of", "state_of"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic)
_SEED_TYPES = ("RandomState", "Generator")
#: the classes of scikit-learn that a function makes, and those functions
_MAKERS = {"newObj"}


def state_of(estimator: Any) -> dict[str, Any]:
    """Return a fitted (or unfitted) estimator as a tree of plain values, which untorn.publish() takes.

    Arrays are those of the estimator, not copies. Pipelines and ensembles are taken apart with all that is in them.

    Raises:
        UnsupportedTypeError: the estimator, or something in it, is not scikit-learn's; the message says where.
    """
    if not _is_ours(type(estimator)):
        raise UnsupportedTypeError(
            f"state_of(): expected an estimator of scikit-learn, found {_name_of(type(estimator))}; for one of your "
            "own class publish its parameters and fitted arrays"
        )
    import sklearn

    return {"sklearn": sklearn.__version__, "estimator": _take(estimator, (type(estimator).__name__,))}


def estimator_of(state: Any) -> Any:
    """Return the estimator of a state, made anew. Its arrays are those of the state: read-only views, for a snapshot's.

    Raises:
        FormatError: the value is no state of an estimator, or one of another version that cannot be read here.
    """
    if not isinstance(state, dict) or not {"sklearn", "estimator"} <= state.keys():
        raise FormatError("estimator_of(): expected what state_of() returned, found another value")
    try:
        return _put(state["estimator"])
    except (TypeError, ValueError, LookupError, AttributeError, ImportError) as error:
        import sklearn

        raise FormatError(
            f"estimator_of(): the state was made by scikit-learn {state['sklearn']}, and cannot be read by "
            f"{sklearn.__version__} ({type(error).__name__}: {error})"
        ) from error


# -- taking apart. Objects become dicts with one of the keys below, so a dict becomes one with the key "dict"


def _take(value: Any, path: tuple[str, ...]) -> Any:
    cls = type(value)
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, np.ndarray):
        if not value.dtype.hasobject:
            return value
        items = [_take(item, (*path, str(index))) for index, item in enumerate(value.ravel().tolist())]
        return {"objects": items, "shape": list(value.shape)}
    if cls is dict:
        return {"dict": [(_take(key, path), _take(item, (*path, str(key)))) for key, item in value.items()]}
    if cls in (list, tuple):
        items = [_take(item, (*path, str(index))) for index, item in enumerate(value)]
        return items if cls is list else tuple(items)
    if isinstance(value, np.dtype):
        return {"dtype": np.lib.format.dtype_to_descr(value)}
    if cls.__module__.partition(".")[0] == "scipy" or cls in (set, frozenset, slice, range):
        return {"value": value}
    if cls.__name__ in _SEED_TYPES and cls.__module__.startswith("numpy.random"):
        state = value.get_state(legacy=False) if cls.__name__ == "RandomState" else value.bit_generator.state
        return {"random": cls.__name__, "state": _take(state, path)}
    if isinstance(value, np.ufunc):
        return {"ufunc": value.__name__}
    if isinstance(value, type) and issubclass(value, np.generic):
        return {"scalar": value.__name__}
    if isinstance(value, type) and _is_ours(value):
        return {"class": _place_of(value)}
    if _is_ours(cls):
        return _take_object(value, path)
    raise UnsupportedTypeError(
        f"{'/'.join(path)}: a {_name_of(cls)}, which is neither scikit-learn's nor a plain value; "
        "publish(estimator, allow_pickle=True) pickles it, for readers that trust the publisher"
    )


def _take_object(value: Any, path: tuple[str, ...]) -> dict[str, Any]:
    """Take an object of scikit-learn apart as it does itself for pickles, without one."""
    make, arguments, *more = value.__reduce_ex__(4)
    state = more[0] if more else None
    if make.__name__ == "__newobj__":
        cls, *rest = arguments
        made = {"object": _place_of(cls), "arguments": _take(tuple(rest), path)}
    elif _is_ours(make) or make.__name__ in _MAKERS:
        made = {"made": _place_of(make), "arguments": _take(tuple(arguments), path)}
    else:
        made = {"made": _place_of(type(value)), "arguments": ()}
    if isinstance(state, dict):
        return made | {"state": {str(name): _take(item, (*path, str(name))) for name, item in state.items()}}
    return made if state is None else made | {"state": _take(state, path)}


# -- putting together


def _put(node: Any) -> Any:
    if isinstance(node, list):
        return [_put(item) for item in node]
    if isinstance(node, tuple):
        return tuple(_put(item) for item in node)
    if not isinstance(node, dict):
        return node
    if "dict" in node:
        return {_put(key): _put(item) for key, item in node["dict"]}
    if "objects" in node:
        array = np.empty(len(node["objects"]), object)
        for index, item in enumerate(node["objects"]):
            array[index] = _put(item)
        return array.reshape(node["shape"])
    if "object" in node or "made" in node:
        return _put_object(node)
    if "random" in node:
        return _put_random(node)
    if "value" in node:
        return node["value"]
    if "dtype" in node:
        return np.lib.format.descr_to_dtype(node["dtype"])
    if "class" in node:
        return _class_at(node["class"])
    kind, name = ("ufunc", node["ufunc"]) if "ufunc" in node else ("scalar", node["scalar"])
    found = getattr(np, name)
    if kind == "ufunc" and isinstance(found, np.ufunc):
        return found
    if kind == "scalar" and isinstance(found, type) and issubclass(found, np.generic):
        return found
    raise FormatError(f"estimator_of(): no {kind} {name!r} of NumPy")


def _put_object(node: dict[str, Any]) -> Any:
    arguments = _put(node["arguments"])
    if "object" in node:
        cls = _class_at(node["object"])
        made = cls.__new__(cls, *arguments)
    else:
        made = _class_at(node["made"])(*arguments)
    if "state" not in node:
        return made
    state = node["state"]
    state = {name: _put(item) for name, item in state.items()} if isinstance(state, dict) else _put(state)
    if hasattr(made, "__setstate__"):
        made.__setstate__(state)
    else:
        made.__dict__.update(state)
    return made


def _put_random(node: dict[str, Any]) -> Any:
    state = _put(node["state"])
    if node["random"] == "RandomState":
        made = np.random.RandomState()
        made.set_state(state)
        return made
    bits = getattr(np.random, str(state["bit_generator"]))
    if not (isinstance(bits, type) and issubclass(bits, np.random.BitGenerator)):
        raise FormatError(f"estimator_of(): no bit generator {state['bit_generator']!r}")
    generator = bits()
    generator.state = state
    return np.random.Generator(generator)


def _class_at(place: str) -> Any:
    """Return a class of scikit-learn. Raises FormatError for anything else, and imports only its modules."""
    module, _, name = place.partition(":")
    if module.partition(".")[0] != "sklearn" or module.startswith("sklearn.externals"):
        raise FormatError(f"estimator_of(): {place!r} is not scikit-learn's")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not _is_ours(found) and (name not in _MAKERS or not found.__module__.startswith("sklearn.")):
        raise FormatError(f"estimator_of(): {place!r} is no class of scikit-learn")  # such as a module that it imports
    return found


def _place_of(cls: Any) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _is_ours(cls: Any) -> bool:
    if not isinstance(cls, type):
        return False
    return cls.__module__.partition(".")[0] == "sklearn" and not cls.__module__.startswith("sklearn.externals")


def _name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
