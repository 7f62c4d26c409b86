"""Adapters, which share values of other libraries. One file per library, imported only when one of its types occurs.

The table in docs/values.md says which values are shared without a copy.
"""

from __future__ import annotations

from untorn.adapter_registry import register_library

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
    **dict.fromkeys(
        (
            *("python", "builtins", "datetime", "zoneinfo", "decimal", "fractions", "uuid", "enum", "pathlib", "array"),
            *("collections", "types", "argparse"),
        ),
        "python",
    ),
}.items():
    register_library(_library, f"untorn.adapters.{_module}")
