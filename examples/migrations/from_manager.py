"""From multiprocessing.Manager to a channel: the tasks of a pool read settings that change.

``before`` and ``after`` do the same work. Usage: python examples/migrations/from_manager.py
"""

import multiprocessing
import sys

import untorn


def task_before(settings, x):
    return x * settings["scale"] + settings["offset"]  # two messages to the manager; another process may write between


def before():
    with multiprocessing.Manager() as manager, multiprocessing.Pool(2) as pool:
        settings = manager.dict(scale=1, offset=0)
        first = pool.starmap(task_before, [(settings, x) for x in range(4)])
        settings["scale"] = 10
        settings["offset"] = 5
        return first, pool.starmap(task_before, [(settings, x) for x in range(4)])


def task_after(settings, x):
    newest = settings.snapshot().value  # a dict of this process: no message
    return x * newest["scale"] + newest["offset"]


def after():
    with untorn.publish({"scale": 1, "offset": 0}) as settings, multiprocessing.Pool(2) as pool:
        reader = settings.subscriber()
        first = pool.starmap(task_after, [(reader, x) for x in range(4)])
        settings.patch({"scale": 10, "offset": 5})  # one version: nobody sees one without the other
        return first, pool.starmap(task_after, [(reader, x) for x in range(4)])


if __name__ == "__main__":
    for half in sys.argv[1:] or ["before", "after"]:
        print(f"{half}:", globals()[half]())
