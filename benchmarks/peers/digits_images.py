"""scikit-learn's digits as images of the size of MNIST."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

__all__ = ["digits"]


@functools.cache
def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return images of 1 x 28 x 28 from 0 to 1, and the digit of each."""
    from sklearn.datasets import load_digits

    found = load_digits()
    large = np.kron(found.images / 16, np.ones((3, 3)))
    padded = np.pad(large, ((0, 0), (2, 2), (2, 2))).astype(np.float32)[:, None]
    return padded, found.target.astype(np.int64)
