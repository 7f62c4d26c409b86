"""Notes on errors of torch that name what to change in the data, since their texts speak of the inside of a layer."""

from __future__ import annotations

__all__ = ["explain"]

_DTYPES = (
    "data and parameters have different dtypes: arrays of NumPy are float64 unless they say otherwise; give "
    "x.astype(np.float32), or train in float64 with module.double()"
)
_CLASSES = "a class number is an int64: give y.astype(np.int64)"

#: (parts of torch's text, any of which is enough; the note)
_HINTS = (
    (("expected target dtype to be Long", "expected scalar type Long"), _CLASSES),
    (
        ("multi-target not supported",),
        "the targets of this loss are class numbers, an array of shape (n,); for one of shape (n, 1) give y[:, 0]",
    ),
    (
        ("must have the same dtype", "have the same dtype, but got", "expected scalar type", "should be the same"),
        _DTYPES,
    ),
)
_TARGET_TOO = "predict() gives the module the parts of a tuple as its inputs: write predict(x), without the targets"


def explain(error: Exception, *, predicting: bool = False) -> None:
    """Add a note to an error of torch that says what to change, if its text is known."""
    text = str(error)
    if isinstance(error, RuntimeError):
        note = next((note for parts, note in _HINTS if any(part in text for part in parts)), None)
    else:
        note = _TARGET_TOO if predicting and isinstance(error, TypeError) and "positional argument" in text else None
    if note is not None:
        error.add_note(note)
