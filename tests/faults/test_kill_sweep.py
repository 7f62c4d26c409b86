"""SIGKILL before and after each system call of every operation of share; in `make soak`, at single instructions too.

sweep/scenes.py checks the channel after each kill. ``-s`` shows a line of figures for each operation.
"""

import pytest
from sweep import runner
from sweep import sweeper as sweeping
from sweep.operations import MISTAKES, OPERATIONS

STEPS = 40

sweeper = runner.fixture(sweeping.serve)


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_each_system_call(sweeper, seed, name):
    found = sweeper("kill", name, seed=seed)
    where = f"of {found.calls} system calls" + found.marked * " and calls into the extension"
    print(f"\n{name}: killed {found.tried} times, before and after each {where}: {len(found.broken)} broken")
    assert not found.broken, "\n".join(found.broken)
    assert found.tried, "nobody was killed"


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_seen(sweeper, seed, name):
    assert sweeper("kill", name, seed=seed).broken


@pytest.mark.soak
@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_single_instructions(sweeper, seed, name):
    found = sweeper("step", name, seed=seed, limit=STEPS)
    print(
        f"\n{name}: killed at {found.tried} of {found.steps} instructions of the extension: {len(found.broken)} broken"
    )
    assert not found.broken, "\n".join(found.broken)
