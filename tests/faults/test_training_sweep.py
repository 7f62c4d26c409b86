"""Workers and servers of a training that are killed, or get errors, at their system calls. See sweep/training.py.

The death of a worker changes no bit of the weights. After the death of a server nothing of it is left, and resuming
gives the same bits. `make test` draws a sample of the places by the seed; `make soak` tests all. ``-s`` shows figures.
"""

import pytest
from sweep import runner, training
from sweep.training import TRAININGS

KILLS, ERRORS = 25, 12
#: the number of places in the soak; "resuming" has thousands of system calls
MANY = 1500

sweeper = runner.fixture(training.serve)


def check(found, how):
    print(
        f"\n{found.operation}: {how} {found.tried} times at its {found.calls} system calls: {len(found.broken)} broken"
    )
    assert not found.broken, "\n".join(found.broken)
    assert found.tried, "nobody was hit"


@pytest.mark.parametrize("name", TRAININGS)
def test_killed_at_system_calls(sweeper, seed, name):
    check(sweeper("kill", name, seed=seed, limit=KILLS), "killed")


@pytest.mark.parametrize("name", TRAININGS)
def test_a_system_call_fails(sweeper, seed, name):
    check(sweeper("fail", name, seed=seed, limit=ERRORS), "an error")


@pytest.mark.soak
@pytest.mark.parametrize("how", ["kill", "fail", "keep failing"])
@pytest.mark.parametrize("name", TRAININGS)
def test_each_system_call(sweeper, seed, name, how):
    check(sweeper(how, name, seed=seed, limit=MANY), how)
