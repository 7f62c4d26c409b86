"""Each system call of every operation of share fails, with each plausible error.

The operation succeeds nevertheless, or raises an error that names the cause (sweep/errnos.py has the contract). It
leaves no descriptor open, and the channel is as intact as after a kill. ``-s`` shows a line of figures for each.
"""

import pytest
from sweep import runner
from sweep import sweeper as sweeping
from sweep.operations import OPERATIONS
from sweep.queues import QUEUE_OPERATIONS

#: the number of an operation's failures in `make test`, drawn by the seed; `make soak` tests all
SAMPLE = dict.fromkeys(OPERATIONS, 25) | dict.fromkeys(QUEUE_OPERATIONS, 10)

sweeper = runner.fixture(sweeping.serve)


def check(sweeper, how, name, seed, limit):
    found = sweeper(how, name, seed=seed, limit=limit)
    values = sum(number for (_, _, kind), number in found.outcomes.items() if kind == "value")
    print(f"\n{name}: {found.tried} calls of {found.calls} failed, {values} times it got over it, "
          f"{len(found.broken)} broken")  # fmt: skip
    assert not found.broken, "\n".join(found.broken)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_system_call_fails(sweeper, seed, name):
    check(sweeper, "fail", name, seed, SAMPLE[name])


@pytest.mark.soak
@pytest.mark.parametrize("name", SAMPLE)
def test_each_system_call_fails_in_each_way(sweeper, seed, name):
    check(sweeper, "fail", name, seed, 0)


@pytest.mark.soak
@pytest.mark.parametrize("name", SAMPLE)
def test_a_system_call_fails_from_some_moment_on(sweeper, seed, name):
    check(sweeper, "keep failing", name, seed, 0)
