"""Multiply with one shared sparse matrix in the workers of a pool.

python examples/sparse_matrix.py --rows 20000 --tasks 8
"""

from __future__ import annotations

import argparse
import multiprocessing
from functools import partial

import numpy as np
from scipy import sparse

import untorn


def similar(matrix, row):
    """Find the row that is most similar to this one, by the cosine."""
    rows = matrix.snapshot().value  # a csr_array whose three arrays are in shared memory
    scores = rows @ rows[[row]].toarray().ravel()
    scores[row] = -1
    return row, int(scores.argmax())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--tasks", type=int, default=8)
    options = parser.parse_args()

    dice = np.random.default_rng(0)
    rows = sparse.random_array((options.rows, 1000), density=0.01, format="csr", rng=dice)
    rows = sparse.csr_array(rows.multiply(1 / np.sqrt(rows.multiply(rows).sum(axis=1) + 1e-9)[:, None]))
    with untorn.publish(rows) as matrix, multiprocessing.Pool(2) as pool:
        print(f"{rows.nnz:,} numbers, {matrix.nbytes / 1e6:.0f} MB shared")
        for row, nearest in pool.map(partial(similar, matrix.subscriber()), range(options.tasks)):
            print(f"row {row} is most like row {nearest}")


if __name__ == "__main__":
    main()
