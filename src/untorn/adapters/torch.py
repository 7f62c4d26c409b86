"""PyTorch: tensors and parameters in CPU memory, dense and sparse, of every dtype except the quantized ones.

torch has no read-only memory: any code that has a tensor may write to it. So a reader's tensors lie in a private
mapping of the version. A write copies the page that it touches into this process; no other process, no other snapshot
and no later version sees it. Nothing is copied before.

A tensor arrives dense in the order of its axes, with its requires_grad: channels_last stays channels_last, and elements
that expand() repeated are repeated in memory. The result of a computation arrives detached. Tensors that share memory,
such as tied weights, arrive as separate tensors.

For a sparse tensor a reader checks only what does not depend on the number of elements: that shapes, dtypes and the
ends of the pointers fit together. It does not check the indices themselves;
``torch.sparse.check_sparse_tensor_invariants`` does.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray

from untorn.adapter_registry import Adapter, Parts
from untorn.errors import UnsupportedTypeError
from untorn.quiet import silenced

__all__ = ["ADAPTERS"]

_NUMPY_HAS = frozenset(
    getattr(torch, name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
    if hasattr(torch, name)
)
#: by item size, the dtype as which a dtype that NumPy does not have, such as bfloat16, is sent
_CARRIERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
#: layout -> its two index tensors
_COMPRESSED = {
    "sparse_csr": ("crow_indices", "col_indices"),
    "sparse_bsr": ("crow_indices", "col_indices"),
    "sparse_csc": ("ccol_indices", "row_indices"),
    "sparse_bsc": ("ccol_indices", "row_indices"),
}


def _name(thing: torch.dtype | torch.layout) -> str:
    return str(thing).removeprefix("torch.")


def _named(name: str, kind: type) -> Any:
    found = getattr(torch, name, None)
    if not isinstance(found, kind):
        raise ValueError(
            f"torch {torch.__version__} has no {kind.__name__} {name!r}; install the publisher's version or a newer one"
        )
    return found


def _take(value: torch.Tensor) -> Parts:
    _check(value)
    bare = value.detach()
    layout, requires_grad = _name(value.layout), value.requires_grad and value.is_leaf
    if layout == "strided":
        return Parts((layout, requires_grad, _name(value.dtype)), {"data": _array_over(bare)})
    shape = tuple(value.shape)
    if layout == "sparse_coo":
        meta = (layout, requires_grad, shape, value.is_coalesced())
        return Parts(meta, {"indices": bare._indices(), "values": bare._values()})  # noqa: SLF001 (the public methods refuse an uncoalesced tensor)
    indices = {name: getattr(bare, name)() for name in _COMPRESSED[layout]}
    return Parts((layout, requires_grad, shape), {**indices, "values": bare.values()})


def _check(value: torch.Tensor) -> None:
    if value.is_quantized:
        raise UnsupportedTypeError(f"a quantized tensor ({_name(value.dtype)}); share its .dequantize() or .int_repr()")
    if value.is_nested:
        raise UnsupportedTypeError("a nested tensor; share list(tensor.unbind())")
    if value.device.type == "meta":
        raise UnsupportedTypeError("a tensor on the meta device, which has no data; allocate it first with .to_empty()")
    if value.device.type != "cpu":
        raise UnsupportedTypeError(f"a tensor on device {str(value.device)!r}; expected CPU memory; share its .cpu()")
    if _name(value.layout) not in ("strided", "sparse_coo", *_COMPRESSED):
        raise UnsupportedTypeError(f"a tensor of layout {value.layout}; share its .to_dense()")


def _array_over(bare: torch.Tensor) -> NDArray[Any]:
    """Return an array over the tensor's memory; a copy only if a conjugation or a negation is pending."""
    try:
        plain = bare.resolve_conj().resolve_neg()
        carried = plain if plain.dtype in _NUMPY_HAS else plain.view(_CARRIERS[plain.dtype.itemsize])
        array: NDArray[Any] = carried.numpy()
    except (RuntimeError, TypeError, KeyError) as error:
        raise UnsupportedTypeError(
            f"a {_name(bare.dtype)} tensor whose memory cannot be read ({error}); "
            "share a plain tensor, outside torch.func transforms"
        ) from error
    return array


def _put(meta: Any, parts: dict[str, Any]) -> torch.Tensor:
    layout, requires_grad, *rest = meta
    with torch.inference_mode(False):  # a snapshot outlives the block in which its value is first read
        if layout == "strided":
            made = torch.from_numpy(parts["data"])
            dtype = _named(rest[0], torch.dtype)
            if made.dtype != dtype:
                made = made.view(dtype)
        else:
            made = _put_sparse(layout, parts, *rest)
        return made.requires_grad_(requires_grad)


def _put_sparse(layout: str, parts: dict[str, Any], shape: list[int], coalesced: bool | None = None) -> torch.Tensor:
    if layout == "sparse_coo":
        _check_coordinates(parts["indices"], parts["values"], shape)
        return torch.sparse_coo_tensor(
            parts["indices"], parts["values"], shape, device="cpu", is_coalesced=coalesced, check_invariants=False
        )
    compressed, plain = (parts[name] for name in _COMPRESSED[layout])
    _check_compressed(layout, compressed, plain, parts["values"], shape)
    with silenced("Sparse", UserWarning):  # torch has warned the user who made the tensor that these are in beta
        return torch.sparse_compressed_tensor(
            compressed,
            plain,
            parts["values"],
            shape,
            layout=_named(layout, torch.layout),
            device="cpu",
            check_invariants=False,
        )


def _check_coordinates(indices: torch.Tensor, values: torch.Tensor, shape: list[int]) -> None:
    """Check what torch itself does not. Raises ValueError."""
    sparse_axes, *_ = indices.shape
    fits = indices.shape == (sparse_axes, values.shape[0]) and indices.dtype == torch.int64
    if not fits or list(values.shape[1:]) != shape[sparse_axes:] or len(shape) < sparse_axes:
        raise ValueError(f"indices {_form(indices)} and values {_form(values)} make no sparse tensor of shape {shape}")


def _check_compressed(
    layout: str, compressed: torch.Tensor, plain: torch.Tensor, values: torch.Tensor, shape: list[int]
) -> None:
    """Check what torch itself does not. Raises ValueError."""
    axes = compressed.ndim - 1  # of the batch
    batch, block = shape[:axes], values.shape[axes + 1 : axes + 3] if layout in ("sparse_bsr", "sparse_bsc") else (1, 1)
    axis = axes + (layout in ("sparse_csc", "sparse_bsc"))  # the compressed axis
    count = shape[axis] // block[axis - axes]
    fits = (
        list(compressed.shape) == [*batch, count + 1]
        and list(plain.shape) == [*batch, values.shape[axes]]
        and list(values.shape[:axes]) == batch
        and [length % size for length, size in zip(shape[axes : axes + 2], block, strict=True)] == [0, 0]
        and compressed.dtype == plain.dtype
        and compressed.dtype in (torch.int32, torch.int64)
        and bool((compressed[..., 0] == 0).all() and (compressed[..., -1] == plain.shape[-1]).all())
    )
    if not fits:
        raise ValueError(
            f"indices {_form(compressed)} and {_form(plain)} and values {_form(values)} make no {layout} tensor of "
            f"shape {shape}"
        )


def _form(tensor: torch.Tensor) -> str:
    return f"{_name(tensor.dtype)} {list(tensor.shape)}"


def _put_parameter(meta: Any, parts: dict[str, Any]) -> torch.nn.Parameter:
    made = _put(meta, parts)
    return torch.nn.Parameter(made, requires_grad=made.requires_grad)


ADAPTERS = (
    Adapter("torch.Tensor", lambda cls: cls is torch.Tensor, _take, _put, private=True),
    Adapter("torch.nn.Parameter", lambda cls: cls is torch.nn.Parameter, _take, _put_parameter, private=True),
)
