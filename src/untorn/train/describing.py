"""A Trainer in one line, for its repr."""

from __future__ import annotations

from typing import Any, Protocol

from untorn import html

__all__ = ["Described", "described", "described_in_html"]


class Described(Protocol):
    """The part of a Trainer that is described."""

    model: Any
    optimizer: Any

    @property
    def mode(self) -> str:
        """See Trainer."""

    @property
    def engine(self) -> str:
        """See Trainer."""

    @property
    def workers(self) -> int:
        """See Trainer."""

    @property
    def shards(self) -> int:
        """See Trainer."""

    @property
    def step(self) -> int:
        """See Trainer."""


def described(trainer: Described, *, name: str | None, closed: bool) -> str:
    """Return what a Trainer trains, how, and how far it is, as in ``<untorn.Trainer of loss_and_grad, SGD, sync, 4
    workers, 4 shards, step 120>``."""
    parts = [f"of {_name_of(trainer.model)}", _name_of(trainer.optimizer), trainer.mode]
    workers = f"{trainer.workers} worker{'' if trainer.workers == 1 else 's'}"
    parts.append("serial" if trainer.engine == "serial" else workers)
    if trainer.mode == "sync":
        parts.append(f"{trainer.shards} shard{'' if trainer.shards == 1 else 's'}")
    parts.append(f"step {trainer.step}")
    if name is not None:
        parts.append(f"name {name!r}")
    if closed:
        parts.append("closed")
    return f"<untorn.Trainer {', '.join(parts)}>"


def described_in_html(trainer: Described, *, name: str | None, closed: bool) -> str:
    """Return the same as a table for notebooks."""
    rows: dict[str, object] = {"model": _name_of(trainer.model), "optimizer": _name_of(trainer.optimizer)}
    rows |= {"mode": trainer.mode, "engine": trainer.engine, "workers": trainer.workers, "shards": trainer.shards}
    rows |= {"step": int(trainer.step), "name": name, "state": "closed" if closed else None}
    return html.facts("Trainer", rows)


def _name_of(given: Any) -> str:
    """Return the name of a module, a model's class, a function or what a partial is of."""
    made = getattr(given, "func", given)  # a functools.partial
    name = getattr(made, "__name__", type(made).__name__)
    return "a function" if name == "<lambda>" else str(name)
