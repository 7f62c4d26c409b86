"""Adapters: how values of other libraries are shared. One file per family; none is imported before its type turns up.

docs/values.md has the table of what is zero-copy.
"""

from __future__ import annotations

from untorn.share.foreign import register_library

__all__: list[str] = []

for _library, _module in {
    "numpy": "numpy",
    "scipy": "scipy",
    "pyarrow": "arrow",
    "pandas": "pandas",
    "polars": "polars",
    "torch": "torch",
    "jax": "jax",
    "jaxlib": "jax",
    "flax": "jax",
    "ml_dtypes": "ml_dtypes",
}.items():
    register_library(_library, f"untorn.adapters.{_module}")
