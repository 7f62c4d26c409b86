"""Engines: where the workers of a job run. One interface, no training logic.

base.py         what an engine is
serial.py       in this process: the reference that every other must equal, bit for bit
processes.py    worker processes, started, supervised and replaced
child.py        one of them, as the kernel knows it
launching.py    starts one, from here; starting.py: what it does from its first line on
importable.py   what it can import
worker_logs.py  its log records, handled here
memory.py, cgroups.py    was a worker killed for want of memory? what the control groups say
threads.py      as many BLAS threads here as a worker has
default_generators.py    who draws from the random numbers that a process has once
"""

from untorn.engines.base import Death, Engine, Turner
from untorn.engines.processes import ProcessEngine
from untorn.engines.serial import SerialEngine

__all__ = ["Death", "Engine", "ProcessEngine", "SerialEngine", "Turner"]
