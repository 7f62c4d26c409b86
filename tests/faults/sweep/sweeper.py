"""One sweep: an operation, done again and again by new victims, each of which is killed, or has an error, a call later.

Runs in a separate process that has loaded only untorn and NumPy: a fork of it takes a millisecond. It sends its
result back as a Sweep. ``python -m pytest tests/faults/test_kill_sweep.py -s`` prints a line for each.
"""

from __future__ import annotations

import gc
import inspect
import os
import random
import shutil
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from helpers import descriptors, untorn_mappings
from sweep import errnos, tracer
from sweep.errnos import Outcome
from sweep.operations import MISTAKES, OPERATIONS, Operation, Stage
from sweep.queues import QUEUE_OPERATIONS
from sweep.tracer import Failure, Plan, Run, Victim, marked, stepped, watched
from untorn import Publisher, Snapshot, Subscriber, _core
from untorn.share import opening, waiting
from untorn.share.attached import drop_dead_attachments

__all__ = ["Sweep", "judged", "mark_extension", "serve", "sweep", "swept"]


FEW_CALLS = 10
#: victims that may be started for each that is to be hit
MOST_ATTEMPTS = 4


@dataclass
class Sweep:
    """The results of all victims of one operation.

    Attributes:
        calls: number of system calls of the operation.
        tried: number of victims that were hit.
        marked: it makes few system calls, and was killed before and after its calls into the extension, too.
        broken: the broken promises and their places.
        outcomes: for failing calls, the number of each outcome of each (call, errno).
    """

    operation: str
    calls: int = 0
    steps: int = 0
    tried: int = 0
    marked: bool = False
    broken: list[str] = field(default_factory=list)
    outcomes: Counter[tuple[str, str, str]] = field(default_factory=Counter)


def serve(pipe: Any) -> None:
    """Do the sweeps that come through the pipe, in its own process, and say before each victim what comes."""
    while True:
        pipe.put(sweep(*pipe.get(), progress=pipe.put))


def sweep(
    how: str, name: str, base: str, seed: int, limit: int, *, progress: Callable[[str], None] = lambda what: None
) -> Sweep:
    """Sweep one operation. ``how`` is "kill", "fail", "keep failing" or "step"; at most ``limit`` victims, drawn from
    all by the seed; 0 for all."""
    operation = (OPERATIONS | QUEUE_OPERATIONS | MISTAKES)[name]
    counting = Plan(follow_child=operation.follow_child, text=tracer.extension_text() if how == "step" else (0, 0))
    return swept(how, name, partial(one, operation, base=Path(base)), counting, seed, limit, progress)


def swept(
    how: str,
    name: str,
    one: Callable[[Plan], tuple[Run, list[str]]],
    counting: Plan,
    seed: int,
    limit: int,
    progress: Callable[[str], None],
) -> Sweep:
    """Hit one victim after the other, each elsewhere. ``one`` returns what became of it, and what was wrong."""
    found, rng = Sweep(name), random.Random(seed)
    one(counting)  # loads what is loaded at first use
    gc.collect()
    gc.freeze()  # or each victim would look through all that was loaded
    whole_run, problems = one(counting)
    if how == "kill" and len(whole_run.calls) < FEW_CALLS:
        counting = replace(counting, marked=True)
        whole_run, problems = one(counting)
    found.marked = counting.marked
    found.calls, found.steps = len(whole_run.calls), whole_run.steps
    found.broken += [f"without any fault: {problem}" for problem in problems]
    if problems:
        return found
    plans = list(_plans(how, whole_run, counting, rng, limit))
    if limit:
        rng.shuffle(plans)
    hit, attempts = True, 0
    while plans and not (limit and (found.tried >= limit or attempts >= MOST_ATTEMPTS * limit)):
        # workers share their steps as it comes: one that had fewer than when they were counted is hit early, if at all
        plan = plans.pop() if hit else min(plans, key=lambda plan: plan.at)
        plans = [other for other in plans if other is not plan]
        progress(f"{name}: {plan}")
        run, problems = one(plan)
        attempts += 1
        hit = run.ended == tracer.KILLED or run.failed > 0
        found.tried += hit
        found.broken += [f"{_where(plan, run)}: {problem}" for problem in problems]
        if isinstance(run.report, Outcome) and run.failed:
            found.outcomes[run.call, errnos.name_of(plan.error), run.report.kind] += 1
    return found


def _plans(how: str, whole: Run, counting: Plan, rng: random.Random, limit: int) -> Iterator[Plan]:
    if how == "kill":
        yield from (replace(counting, mode=tracer.KILL_AT_STOP, at=at) for at in range(1, whole.stops + 1))
    elif how == "step":
        steps = range(1, whole.steps + 1)
        for at in rng.sample(steps, min(limit, len(steps))) if limit else steps:
            yield replace(counting, mode=tracer.KILL_AT_STEP, at=at)
    else:
        # by the kind of call: the calls between two of a kind may differ from run to run
        for call, at in zip(whole.calls, _occurrences(whole.calls), strict=True):
            yield from errnos.plans_of(call, at, follow_child=counting.follow_child, keep_failing=how == "keep failing")


def _occurrences(calls: Iterable[str]) -> Iterator[int]:
    """For each call, how many of its name there are up to it."""
    seen: Counter[str] = Counter()
    for call in calls:
        seen[call] += 1
        yield seen[call]


def one(operation: Operation, plan: Plan, base: Path) -> tuple[Run, list[str]]:
    """One victim, from its fork to the last trace of it. Returns what was wrong, in words."""
    folder = Path(tempfile.mkdtemp(dir=base))
    scene = operation.scene(folder)
    victim = Victim(lambda: _prepare(operation, folder, plan), lambda state: _work(operation, *state))
    try:
        scene.before()
        scene.ready(victim.prepare())
        run = victim.run(plan)
    finally:
        ended = victim.end()
    if not ended:
        scene.problems.append("a process that the victim forked does not end")
    scene.problems += judged(plan, run)
    done = isinstance(run.report, Outcome) and not run.report.failed and not operation.follow_child
    scene.after(operation.versions[-1:] if done else operation.versions)
    scene.end()
    shutil.rmtree(folder)
    return run, scene.problems


def judged(plan: Plan, run: Run) -> list[str]:
    """Return what is wrong with how the victim ended, and with what it told."""
    if run.ended == tracer.HUNG:
        return [f"hung in {run.call}"]
    # without the memory for its own mappings, or for copies of what its parent holds, a forked child ends
    no_memory = (run.signal, run.call) in ((signal.SIGABRT, "mmap"), (signal.SIGSEGV, "mremap"))
    if run.ended == tracer.DIED and not (plan.follow_child and no_memory):
        return [f"died of signal {run.signal}"]
    if run.ended == tracer.KILLED and not plan.follow_child:
        return []
    if isinstance(run.report, Failure):
        # OpenBLAS sends its process SIGINT if it cannot start a thread
        by_openblas = run.call in ("clone", "clone3") and run.report.text.endswith("KeyboardInterrupt\n")
        return [] if by_openblas else [run.report.text]
    if not isinstance(run.report, Outcome):
        return [f"it has no report: {run}"]
    return errnos.broken(run.report, plan.error if run.failed else 0, run.call)


def _where(plan: Plan, run: Run) -> str:
    if plan.mode == tracer.FAIL_CALL:
        again = " and ever after" if plan.keep_failing else ""
        return f"{run.call} number {plan.at} fails with {errnos.name_of(plan.error)}{again}"
    if plan.mode == tracer.KILL_AT_STEP:
        return f"killed at instruction {plan.at} of the extension"
    return f"killed {'before' if run.at_entry else 'after'} call {len(run.calls)}, {run.call}"


# -- in the victim


def mark_extension(mark: Callable[..., Any]) -> None:
    """Wrap all that goes into the C extension: its functions, what ends holds and attachments, and fork."""
    for type_ in (_core.Attachment, _core.Board, _core.Queue, _core.QueueItem, _core.FrozenBuilder):
        for name, method in vars(type_).items():
            if inspect.ismethoddescriptor(method) and not name.startswith("__"):
                setattr(type_, name, mark(method))
    for owner, names in (
        (_core, ("copy", "copy_leaves", "format_control", "format_queue", "frozen_build", "frozen_merge")),
        (opening, ("attach",)),
        (Snapshot, ("close",)),
        (Subscriber, ("close",)),
        (Publisher, ("close",)),
        (os, ("fork",)),
    ):
        for name in names:
            setattr(owner, name, mark(getattr(owner, name)))


def _prepare(operation: Operation, folder: Path, plan: Plan) -> Any:
    before = (set(descriptors()), len(untorn_mappings()))
    waiting.IDLE_S = 0.0  # the thread that sleeps for coroutines ends at once
    stage = Stage(folder)
    state = operation.prepare(stage)
    gc.collect()
    if plan.text[1]:
        mark_extension(stepped)
    elif plan.marked:
        mark_extension(marked)
    gc.disable()  # or it would come at another moment each time
    return (stage, state, before), operation.message(state)


def _work(operation: Operation, stage: Stage, state: Any, before: tuple[set[int], int]) -> Outcome:
    error = None
    with watched():
        try:
            operation.work(stage, state)
        except Exception as raised:
            error = raised
    outcome = Outcome.of(error)
    error = None  # with all that its traceback refers to
    stage.close()
    for thread in set(threading.enumerate()) - {threading.current_thread()}:
        thread.join()
    drop_dead_attachments()
    outcome.look_for_leaks(*before)
    return outcome
