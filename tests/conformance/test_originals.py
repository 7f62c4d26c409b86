"""Well-known example programs, written anew in benchmarks/, have the losses of their plain loops, step by step.

The benchmark does the same for all of them, over more steps, and measures their speed.
"""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.peers.torch_originals import OriginalCase, curves

pytest.importorskip("torch")
pytest.importorskip("sklearn")


@pytest.mark.parametrize(
    ("name", "rounding"),
    [
        pytest.param("ActorCritic", 0.0, id="the newest policy acts"),
        pytest.param("TextLstm", 0.0, id="the state is carried, gradients are clipped"),
        pytest.param("Vae", 0.0, id="the model draws random numbers"),
        pytest.param("CharGpt", 1e-5, id="parameters are shared, and in two groups"),
    ],
)
def test_losses_are_those_of_the_plain_loop(name, rounding):
    plain, found = curves(OriginalCase(name, 3))
    assert len(set(plain)) == 3
    np.testing.assert_allclose(found, plain, rtol=rounding, atol=0)
