"""One version of a channel, as its readers see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self

from untorn import _core, html
from untorn.errors import ClosedError, UntornError
from untorn.first_guesses import unknown_attribute, words
from untorn.share.attached import Attached
from untorn.typevars import T_co

__all__ = ["Snapshot"]

_GUESSES = words(
    ("data values params array content payload tree state", "write value"),
    ("get keys items pop index", "the value has that: write value.{}(...)"),
    ("shape dtype ndim size T mean sum copy tolist numpy to_numpy astype", "the value has that: write value.{}"),
    ("read load fetch", "write value"),
    ("time timestamp published created_at", "write published_at"),
    ("number id index", "write version"),
    ("release free unpin", "write close()"),
    ("update publish set write patch edit", "a snapshot is read-only; the publisher's process calls Publisher.{}()"),
    ("newer wait next refresh", "a snapshot stays as it is; take another one: subscriber.snapshot()"),
)


class Snapshot(Generic[T_co]):
    """One published version, which stays consistent as long as anything refers to it.

    Use it as a context manager, or drop it when it is no longer needed. Views into ``value`` keep the version pinned by
    themselves, even after the block.

    Example:
        >>> import numpy as np, untorn
        >>> with untorn.publish({"w": np.zeros(3)}) as weights:
        ...     with weights.subscriber().snapshot() as snap:
        ...         snap.version, snap.value["w"].sum()
        (1, np.float64(0.0))

    ``snap[key]`` and ``key in snap`` are short for ``snap.value[key]`` and ``key in snap.value``.
    """

    __slots__ = ("_allow_pickle", "_attached", "_hold", "_value", "version")

    #: the version's number: 1 for the first, one more for each published
    version: int

    def __init__(self, attached: Attached, hold: _core.Hold, allow_pickle: bool = False) -> None:
        self._attached = attached
        self._allow_pickle = allow_pickle
        self._hold: _core.Hold | None = hold
        self._value: Any = _MISSING
        self.version = hold.version

    def _held(self) -> _core.Hold:
        hold = self._hold  # read once, here as below: a signal handler may close this in between
        if hold is None:
            raise ClosedError(
                f"this snapshot of version {self.version} is closed; take a new one, or keep a view into its value"
            )
        return hold

    @property
    def value(self) -> T_co:
        """The published value. Arrays are read-only views of shared memory (no copy), and so are values of other
        libraries if these allow it (docs/values.md); numbers, str, bytes and containers are copies.

        Does not block. Raises ClosedError after close(), FormatError if the bytes are not a version,
        UnsupportedTypeError for a pickled value without allow_pickle, ImportError if the value's library is missing.
        """
        hold, value = self._held(), self._value
        if value is _MISSING:
            value = self._attached.value(hold, self._allow_pickle)
            if self._hold is not None:
                self._value = value
        return value  # type: ignore[no-any-return]  # decoding cannot know the type

    def __getitem__(self, key: Any) -> Any:
        """Return ``value[key]``."""
        value: Any = self.value
        return value[key]

    def __contains__(self, key: object) -> bool:
        """Return whether ``key in value``."""
        value: Any = self.value
        return key in value

    @property
    def published_at(self) -> float:
        """When this version was published, in seconds since the epoch (as time.time())."""
        return self._held().published_ns / 1e9

    @property
    def nbytes(self) -> int:
        """The size of this version in shared memory, in bytes."""
        return self._held().nbytes

    def close(self) -> None:
        """Release this version; views into it that are still alive keep it. May be called twice."""
        self._hold = None
        self._value = None

    def __enter__(self) -> Self:
        self._held()
        return self

    def __exit__(self, *_: object) -> None:
        self._hold = None
        self._value = None

    def __reduce__(self) -> Any:
        raise TypeError("a Snapshot stays in its process; send the Subscriber, or what you need of the value")

    if not TYPE_CHECKING:  # a type checker would take every name for one that is here

        def __getattr__(self, name: str) -> NoReturn:
            """Raise the error for an attribute that is not there."""
            raise unknown_attribute(self, name, _GUESSES)

        def __setitem__(self, key: object, value: object) -> NoReturn:
            """Raise the error for an assignment: nobody can change a published version."""
            raise TypeError(
                f"a snapshot is read-only: to change {key!r}, the publisher's process calls patch() or edit()"
            )

        def __iter__(self) -> NoReturn:
            """Raise the error for iteration and unpacking."""
            raise TypeError("'Snapshot' object is not iterable: write snap.value, or snap.version and snap.value")

        def __array__(self, dtype: object = None, copy: object = None) -> NoReturn:
            """Raise the error for a conversion by NumPy, which would make an array of one object."""
            raise TypeError("a Snapshot is no array: write np.asarray(snap.value), or that of a part of the value")

    def _repr_html_(self) -> str:
        hold, title = self._hold, f"Snapshot of {self._attached.address.label!r}"
        if hold is None:
            return html.facts(title, {"version": self.version, "state": "closed"})
        told = html.facts(title, {"version": self.version, "size": html.size_text(hold.nbytes)})
        try:
            return told + html.outline(self.value)
        except (UntornError, ImportError) as error:
            return told + html.facts("", {"value": error})

    def __repr__(self) -> str:
        hold = self._hold
        state = "closed" if hold is None else f"{hold.nbytes:,} bytes"
        return f"<untorn.Snapshot of {self._attached.address.label!r}, version {self.version}, {state}>"


_MISSING = object()
