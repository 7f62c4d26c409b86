"""Engines: where the workers of a job run. One interface, no training logic.

base.py         the interface of an engine and of a worker
serial.py       a worker in this process: the reference that every other engine must equal, bit for bit
processes.py    worker processes: starts, supervises and replaces them
child.py        one worker process, held by a descriptor from the kernel
launching.py    starts a worker process; starting.py is what runs first in it
fork_servers.py starts a worker in a fork of a process that has imported what it needs: fork_serving.py runs there,
                import_watch.py and forkable.py tell whether it may be forked, inherited.py for which workers
module_names.py finds the modules that a pickled model needs
importable.py   tells which modules a worker process can import
worker_logs.py  sends the log records of workers to the server
memory.py, cgroups.py    out-of-memory kills, and the files of control groups
threads.py      limits BLAS threads in this process to the number that a worker has
default_generators.py    the lock around the default random generators of a process
"""

from untorn.engines.base import Death, Engine, EngineJob, Worker
from untorn.engines.fork_servers import StartMethod
from untorn.engines.processes import ProcessEngine
from untorn.engines.serial import SerialEngine

__all__ = ["Death", "Engine", "EngineJob", "ProcessEngine", "SerialEngine", "StartMethod", "Worker"]
