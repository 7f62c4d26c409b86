"""Type variables of public classes, with defaults: in an annotation ``Subscriber`` alone is ``Subscriber[Any]``.

Type checkers know defaults, in strict mode too. Python 3.11 has none, and needs none.
"""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import TypeVar
else:

    def TypeVar(name, *, default, **more):
        """Return a typing.TypeVar without the default."""
        return typing.TypeVar(name, **more)


__all__ = ["T", "T_co", "TypeVar"]

T = TypeVar("T", default=Any)
T_co = TypeVar("T_co", default=Any, covariant=True)
