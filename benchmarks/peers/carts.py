"""Poles on carts, after Barto, Sutton and Anderson (1983), as many as wanted at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Carts"]

_GRAVITY, _CART, _POLE, _HALF, _FORCE, _SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
_FAR, _LEANING = 2.4, 12 * np.pi / 180


class Carts:
    """Carts that are pushed to the left (0) or right (1).

    Attributes:
        states: float32 (count, 4): position, speed, angle and its speed.
    """

    def __init__(self, count: int) -> None:
        self._rng = np.random.default_rng(0)
        self.states = self._begun(count)

    def move(self, right: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Push each cart. Returns the rewards, and which poles have fallen; these begin anew."""
        place, speed, angle, turning = self.states.T.astype(np.float64)
        force, total, moment = np.where(right == 1, _FORCE, -_FORCE), _CART + _POLE, _POLE * _HALF
        push = (force + moment * turning**2 * np.sin(angle)) / total
        leaning = _GRAVITY * np.sin(angle) - np.cos(angle) * push
        turned = leaning / (_HALF * (4 / 3 - _POLE * np.cos(angle) ** 2 / total))
        pushed = push - moment * turned * np.cos(angle) / total
        rates = (speed, pushed, turning, turned)
        self.states = np.stack(
            [now + _SECONDS * rate for now, rate in zip((place, speed, angle, turning), rates, strict=True)], 1
        ).astype(np.float32)
        fallen = (abs(self.states[:, 0]) > _FAR) | (abs(self.states[:, 2]) > _LEANING)
        self.states[fallen] = self._begun(int(fallen.sum()))
        return np.ones(len(fallen), np.float32), fallen

    def _begun(self, count: int) -> NDArray[np.float32]:
        return self._rng.uniform(-0.05, 0.05, (count, 4)).astype(np.float32)
