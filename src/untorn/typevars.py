"""Type variables of public classes, with defaults: in an annotation, ``Subscriber`` means ``Subscriber[Any]``.

Type checkers support defaults, even in strict mode. Python 3.11 does not, and does not need them.
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
