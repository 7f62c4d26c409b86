"""The type variables of the public classes: the type of the value that a channel carries.

Type checkers know them with a default: in an annotation ``Subscriber`` alone is ``Subscriber[Any]``, in strict mode
too. Python 3.11 has no defaults, and needs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
    T_co = TypeVar("T_co", default=Any, covariant=True)
else:
    from typing import TypeVar

    T = TypeVar("T")
    T_co = TypeVar("T_co", covariant=True)

__all__ = ["T", "T_co"]
