"""The nodes of a training on a Ray cluster: one actor per node process.

::

    driver ── start ──> Ray ──> actor NodeProcess on a machine ──> run_node ──> its workers
       ^                            │
       └── untorn's own connection ─┘

Ray decides nothing about the training. It says which machines there are, starts an actor on one of them, and tells when
the actor has ended, which untorn's connection usually tells sooner. It ends the actors when the driver does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import types
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from untorn.engines.importable import main_stays_here
from untorn.engines.nodes import Cluster, Ended, Figures, Invitation
from untorn.errors import CapacityError
from untorn.ray.metrics import TrainingMetrics
from untorn.ray.nodes import Machine, ensure_ray, machines, on_node, own_address

__all__ = ["RayCluster"]

#: how old the list of machines may be
_FRESH_S = 0.5
#: how long Ray may take to tell that a node that was lost has ended; until then, its machine may be gone
_VERDICT_S = 2.0
#: how long no node is started on a machine that may be gone
_AVOID_S = 10.0
#: how long close() waits for the actors to end by themselves
_END_S = 5.0
#: what of ray_options is for ray.init()
_FOR_INIT = ("address", "init")


class RayCluster(Cluster):
    """Nodes on the machines of a Ray cluster, spread over as many as possible.

    Args:
        options: for ``ray.init()``, which is called if nobody has: ``address``, and a dict of other arguments,
            ``init``. The rest are options of the actor of each node, as for ``Actor.options()``: ``num_cpus`` (by
            default one for each worker), ``num_gpus``, ``resources``, ``memory``, ``runtime_env``, and
            ``scheduling_strategy`` (then Ray alone decides where nodes run, and the number of nodes must be given).
    """

    name = "ray"

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        given = dict(options or {})
        self._init: dict[str, Any] = dict(given.get("init") or {})
        if "address" in given:
            self._init["address"] = given["address"]
        self._options: dict[str, Any] = {key: value for key, value in given.items() if key not in _FOR_INIT}
        self._nodes: int | None = None
        self._processes: dict[int, _Process] = {}
        self._lost: list[tuple[float, _Process]] = []
        self._avoided: dict[str, float] = {}  # by the id of a machine: until when
        self._machines: tuple[float, list[Machine]] = (0.0, [])
        self._lock = threading.RLock()
        self._main = contextlib.ExitStack()
        self._metrics: TrainingMetrics | None = None

    # -- what there is

    def open(self, nodes: int | None, workers: int | None) -> None:
        """See Cluster. By default, each node has a worker for each CPU of the smallest machine."""
        ensure_ray(self._init)
        self.host = own_address()
        found = self._look(now=True)
        if workers is None:
            cpus = self._options.get("num_cpus") or min(filter(None, map(_whole_cpus, found)), default=1)
            workers = max(1, int(cpus))
        self.workers = workers
        self._options.setdefault("num_cpus", workers)
        ray.remote(NodeProcess).options(**self._options)  # raises ValueError for an option that there is not
        if self._is_placed_by_ray:
            if nodes is None:
                raise ValueError(
                    "nodes: give their number, since ray_options['scheduling_strategy'] decides where they run"
                )
        else:
            self._check_room(1 if nodes is None else nodes)
        self._nodes = nodes
        self._main.enter_context(main_stays_here())

    def wanted(self) -> int:
        """See Cluster."""
        if self._nodes is not None:
            return self._nodes
        return max(1, sum(self._fit(machine.total) > 0 for machine in self._look()))

    def neighbours(self) -> int:
        """See Cluster."""
        with self._lock:
            there = Counter(process.machine.address for process in self._processes.values() if process.machine)
        return max(there.values(), default=1)

    def resize(self, nodes: int) -> None:
        """See Cluster."""
        if nodes < 1:
            raise ValueError(f"nodes: expected at least 1, found {nodes}")
        with self._lock:
            more = nodes - len(self._processes)
            if more > 0 and not self._is_placed_by_ray:
                self._check_room(more)
            self._nodes = nodes

    @property
    def _is_placed_by_ray(self) -> bool:
        return "scheduling_strategy" in self._options

    def _look(self, *, now: bool = False) -> list[Machine]:
        with self._lock:
            since, found = self._machines
            if now or time.monotonic() - since > _FRESH_S:
                found = machines()
                self._machines = time.monotonic(), found
            return found

    def _demand(self) -> dict[str, float]:
        """Return the resources of one node, as Ray names them."""
        options = self._options
        demand = {"CPU": options.get("num_cpus"), "GPU": options.get("num_gpus"), "memory": options.get("memory")}
        demand |= dict(options.get("resources") or {})
        return {name: float(amount) for name, amount in demand.items() if amount}

    def _fit(self, room: Mapping[str, float]) -> int:
        """Return how many nodes fit into these resources."""
        demand = self._demand()
        if not demand:
            return 1
        return min(int(room.get(name, 0.0) / amount + 1e-9) for name, amount in demand.items())

    def _check_room(self, more: int) -> None:
        """Check that this many more nodes fit now. Raises CapacityError with what is asked for and what is there."""
        found = self._look(now=True)
        free = sum(self._fit(machine.free) for machine in found)
        if free < more:
            demand = self._demand()
            each = " and ".join(f"{amount:g} {name}" for name, amount in demand.items())
            there = "; ".join(_shown(machine, demand) for machine in found) or "no node that is alive"
            beside = f" beside the {len(self._processes)} that run" if self._processes else ""
            raise CapacityError(
                f"the Ray cluster has room for {free} more node{'s' * (free != 1)} of this training, and {more} "
                f"{'are' if more != 1 else 'is'} asked for{beside}, with {each} each. It has {there}. Add machines "
                "with `ray start`, use fewer nodes or workers, or give ray_options={'num_cpus': ...}"
            )

    # -- node processes

    def start(self, invitation: Invitation) -> bool:
        """See Cluster."""
        with self._lock:
            options = {"max_restarts": 0, "max_task_retries": 0, **self._options}
            machine = None
            if not self._is_placed_by_ray:
                machine = self._choose()
                if machine is None:
                    return False
                options["scheduling_strategy"] = on_node(machine.id)
            actor: Any = ray.remote(NodeProcess).options(**options).remote()
            self._processes[invitation.number] = _Process(actor, actor.run.remote(invitation), machine)
            return True

    def _choose(self) -> Machine | None:
        """Return the machine for one more node: one with room, and the fewest nodes of this training."""
        self._judge_lost()
        ours = Counter(process.machine.id for process in self._processes.values() if process.machine)
        now = time.monotonic()
        found = [
            machine
            for machine in self._look()
            # what is free is known a moment late, so what runs there is counted as well
            if self._fit(machine.free) > 0 and ours[machine.id] < self._fit(machine.total)
            if self._nodes is not None or not ours[machine.id]
            if self._avoided.get(machine.id, 0.0) <= now
        ]
        return min(found, key=lambda machine: ours[machine.id], default=None)

    def ended(self) -> list[Ended]:
        """See Cluster."""
        with self._lock:
            self._judge_lost()
            if not self._processes:
                return []
            numbers = {process.running: number for number, process in self._processes.items()}
            done, _ = ray.wait(list(numbers), num_returns=len(numbers), timeout=0)
            return [self._end(numbers[running]) for running in done]

    def _end(self, number: int) -> Ended:
        process = self._processes.pop(number)
        place = f" on {process.machine}" if process.machine is not None else ""
        reason = _why(process.running, place)
        _kill(process.actor)
        return Ended(number, reason)

    def stop(self, number: int, *, lost: bool = False) -> None:
        """See Cluster."""
        with self._lock:
            process = self._processes.pop(number, None)
            if process is None:
                return
            if lost and process.machine is not None:
                self._avoided[process.machine.id] = time.monotonic() + _AVOID_S
                self._lost.append((time.monotonic() + _VERDICT_S, process))
            else:
                _kill(process.actor)

    def _judge_lost(self) -> None:
        """See what Ray says of the nodes that were lost. If one has just ended, its machine is well; if Ray does not
        know, the machine is avoided for a while, and the node is ended when it is reached again."""
        waiting, self._lost = self._lost, []
        for until, process in waiting:
            assert process.machine is not None
            if ray.wait([process.running], timeout=0)[0]:
                self._avoided.pop(process.machine.id, None)
            elif time.monotonic() < until:
                self._lost.append((until, process))
                continue
            _kill(process.actor)

    def show(self, figures: Figures) -> None:
        """See Cluster. They become metrics of Ray (metrics.py lists them)."""
        if self._metrics is None:
            self._metrics = TrainingMetrics()
        self._metrics.show(figures)

    def close(self) -> None:
        """See Cluster. Ray keeps running."""
        self._main.close()
        with self._lock:
            processes = [*self._processes.values(), *(process for _, process in self._lost)]
            self._processes, self._lost = {}, []
        if processes:
            with contextlib.suppress(Exception):  # ray.shutdown() was called
                ray.wait([process.running for process in processes], num_returns=len(processes), timeout=_END_S)
        for process in processes:
            _kill(process.actor)


@dataclass
class _Process:
    """A node process: its actor, the reference of its only call, and the machine that was chosen for it."""

    actor: Any
    running: Any
    machine: Machine | None


class NodeProcess:
    """The actor of a node. Ray shows its name with what it prints and logs."""

    def run(self, invitation: Invitation) -> None:
        """Be a node, until the driver ends or gives this node up."""
        from untorn.engines.nodes.node import run_node

        _undo_what_ray_does(invitation.number)
        run_node(invitation)


def _undo_what_ray_does(number: int) -> None:
    """Undo what a worker process of Ray would pass on to untorn's workers: its main program, which they would run
    again, and its number of threads.

    Log records go to the standard error, which Ray keeps among its logs and shows at the driver."""
    sys.modules["__main__"] = types.ModuleType("__main__")
    this: Any = ray.get_runtime_context()
    cpus = this.get_assigned_resources().get("CPU", 1)
    if os.environ.get("OMP_NUM_THREADS") == str(max(1, int(cpus))):  # it sets this if nobody else has
        del os.environ["OMP_NUM_THREADS"]
    if not logging.getLogger().handlers:
        logging.basicConfig(stream=sys.stderr, format=f"%(levelname)s: node {number}: %(message)s")


def _kill(actor: Any) -> None:
    with contextlib.suppress(Exception):  # it is dead, or Ray is
        ray.kill(actor)


def _why(running: Any, place: str) -> str:
    """Return why a call ended, in words that follow "node 3"."""
    try:
        ray.get(running)
    except RayTaskError as error:
        cause: Any = error.cause
        return f"failed{place} ({type(cause).__name__}: {cause})"
    except ActorDiedError as error:
        return f"was ended{place} ({_gist(error)})"
    except RayActorError as error:  # it may be alive, but its call is lost
        return f"cannot be reached by Ray{place} ({_gist(error)})"
    except Exception as error:
        return f"could not be started{place} ({type(error).__name__}: {_gist(error)})"
    return f"ended{place}"


def _gist(error: Exception) -> str:
    """Return the last line of one of Ray's long messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _whole_cpus(machine: Machine) -> int:
    return int(machine.total.get("CPU", 0.0))


def _shown(machine: Machine, demand: Mapping[str, float]) -> str:
    rooms = (f"{machine.free.get(name, 0.0):g} of {machine.total.get(name, 0.0):g} {name} free" for name in demand)
    return f"{machine} with {', '.join(rooms)}"
