"""SIGKILL before and after each system call of every operation of share; in `make soak`, at single instructions too.

sweep/scenes.py checks the channel after each kill. ``-s`` shows a line of figures for each operation.
"""

import pytest
from sweep import runner
from sweep import sweeper as sweeping
from sweep.operations import MISTAKES, OPERATIONS
from sweep.queues import QUEUE_OPERATIONS

STEPS = 40
#: the number of an operation's kills in `make test`, drawn by the seed; 0 is all. `make soak` makes all
SAMPLE = dict.fromkeys(OPERATIONS, 0) | dict.fromkeys(QUEUE_OPERATIONS, 10)

sweeper = runner.fixture(sweeping.serve)


def check(sweeper, name, seed, limit):
    found = sweeper("kill", name, seed=seed, limit=limit)
    where = f"of {found.calls} system calls" + found.marked * " and calls into the extension"
    some = "some" if limit else "each"
    print(f"\n{name}: killed {found.tried} times, before and after {some} {where}: {len(found.broken)} broken")
    assert not found.broken, "\n".join(found.broken)
    assert found.tried, "nobody was killed"


@pytest.mark.parametrize("name", SAMPLE)
def test_killed_at_each_system_call(sweeper, seed, name):
    check(sweeper, name, seed, SAMPLE[name])


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name, limit in SAMPLE.items() if limit])
def test_killed_at_all_system_calls(sweeper, seed, name):
    check(sweeper, name, seed, 0)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_seen(sweeper, seed, name):
    assert sweeper("kill", name, seed=seed).broken


@pytest.mark.soak
@pytest.mark.parametrize("name", SAMPLE)
def test_killed_at_single_instructions(sweeper, seed, name):
    found = sweeper("step", name, seed=seed, limit=STEPS)
    print(
        f"\n{name}: killed at {found.tried} of {found.steps} instructions of the extension: {len(found.broken)} broken"
    )
    assert not found.broken, "\n".join(found.broken)
