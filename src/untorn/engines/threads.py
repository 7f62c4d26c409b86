"""How many threads numerical libraries use in this process."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["threads_limited"]


@contextmanager
def threads_limited(threads: int) -> Iterator[None]:
    """Inside, BLAS libraries and PyTorch, where it is loaded, use so many threads: their number can change the last bit
    of a matrix product, so here it must be that of the worker processes."""
    torch = sys.modules.get("torch")
    count = torch.get_num_threads() if torch is not None else threads
    with _blas_limited(threads):
        if torch is not None and count != threads:
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            if torch is not None and count != threads:
                torch.set_num_threads(count)


@contextmanager
def _blas_limited(threads: int) -> Iterator[None]:
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        warnings.warn(
            "threadpoolctl is not installed, so this process uses as many BLAS threads as the library likes; the last "
            "bits of what it computes may differ from the workers': pip install 'untorn[train]'",
            RuntimeWarning,
            stacklevel=5,
        )
        yield
        return
    with threadpool_limits(limits=threads):
        yield
