"""JAX arrays, including random keys, and Flax's FrozenDict.

An array on a single device can be shared and keeps its dtype. The reader's array is uncommitted, on the reader's
default device: on a CPU it uses the version's memory, on other devices it is a copy. The memory is a private mapping:
JAX itself never writes to it, but a library that receives the array through DLPack might.

64-bit arrays keep their dtype in a reader where jax_enable_x64 is off; JAX warns where it then narrows results.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from untorn import _core
from untorn.adapter_registry import Adapter, Parts
from untorn.adapters.ml_dtypes import from_bits, to_bits
from untorn.errors import UnsupportedTypeError

__all__ = ["ADAPTERS"]

_WIDE = frozenset({"int64", "uint64", "float64", "complex128"})
#: dtypes that a Python number can become
_OF_PYTHON = frozenset({"int32", "int64", "float32", "float64", "complex64", "complex128"})


def _take(value: Any) -> Parts:
    _check(value)
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        impl = jax.random.key_impl(value)
        if not isinstance(impl, str):
            raise UnsupportedTypeError(f"random keys of {impl}, which has no name; share their jax.random.key_data()")
        return Parts(("key", impl), {"data": np.asarray(jax.random.key_data(value), order="C")})
    array = np.asarray(value, order="C")
    return Parts(("array", array.dtype.name, bool(value.weak_type)), {"data": to_bits(array)})


def _check(value: Any) -> None:
    if isinstance(value, jax.core.Tracer):
        raise UnsupportedTypeError(
            "a tracer, which has no data: this is inside jit, grad, vmap or the like; publish the values they return"
        )
    if value.is_deleted():
        raise UnsupportedTypeError(
            "an array that was deleted, perhaps by donating it to a jitted function; publish the function's result"
        )
    if len(value.sharding.device_set) > 1:
        way = "jax.device_get()" if value.is_fully_addressable else "multihost_utils.process_allgather()"
        raise UnsupportedTypeError(
            f"an array on {len(value.sharding.device_set)} devices; expected one; share the result of {way}"
        )


def _put(meta: Any, parts: dict[str, Any]) -> Any:
    kind, name, *rest = meta
    array = parts["data"]
    if isinstance(array.base, _core.Draft):
        array = array.copy()  # a JAX array is immutable, but the slot of an edit will change
    with jax.ensure_compile_time_eval():  # even a value that is first read inside jit has to be an array
        if kind == "key":
            return jax.random.wrap_key_data(jax.device_put(array), impl=name)
        return _array_on(from_bits(array, name), weak=rest[0])


def _array_on(array: NDArray[Any], *, weak: bool) -> Any:
    """Return a JAX array over the same memory if the device can use it, else a copy."""
    name = array.dtype.name
    with jax.enable_x64(name in _WIDE):  # keeps the dtype whatever the reader's setting is
        if weak and not array.shape and name in _OF_PYTHON:
            return jnp.asarray(array.item())  # the only public way to make a weak type
        return jax.device_put(array)


def _put_frozen(_: Any, parts: dict[str, Any]) -> Any:
    from flax.core import FrozenDict

    make: Any = FrozenDict
    return make(parts["tree"])


ADAPTERS = (
    Adapter("jax.Array", lambda cls: issubclass(cls, jax.Array | jax.core.Tracer), _take, _put, private=True),
    Adapter(
        "flax.FrozenDict",
        lambda cls: (cls.__module__, cls.__qualname__) == ("flax.core.frozen_dict", "FrozenDict"),
        lambda value: Parts((), {"tree": value.unfreeze()}),
        _put_frozen,
    ),
)
