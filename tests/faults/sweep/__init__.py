"""Kills, failing system calls and single steps for every operation, and what must hold after each.

::

    test_kill_sweep.py, test_errno_sweep.py, test_training_sweep.py     pytest: one test per operation
       │ a fresh process with untorn and NumPy alone, so that forks are cheap
    sweeper.py     for each system call: a victim is forked, runs the operation, and is killed there
       │ ├── tracer.py, tracer.c    how it gets exactly there (ptrace)
       │ ├── operations.py          what the victim does
       │ ├── scenes.py              what the sweeper itself holds meanwhile, and checks afterwards
       │ └── queues.py              both for queues
    training.py    the same for workers and servers of a training
    runner.py      pytest's side
"""
