"""docs/guide/logs.md lists every log record, and the death of a worker is one."""

import ast
import contextlib
import functools
import logging
import os
import re
import signal
from pathlib import Path

import numpy as np

from untorn import SGD, Trainer

ROOT = Path(__file__).parents[2]
LEVELS = {"info": "INFO", "log": "INFO", "warning": "WARNING", "error": "ERROR", "exception": "ERROR"}


def logged():
    """Yield (logger, level, message, number of facts) of each call of a module's `_log` above DEBUG."""
    for path in sorted((ROOT / "src/untorn").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if ast.unparse(node.func.value) != "_log" or node.func.attr not in LEVELS:
                continue
            message, *facts = node.args[node.func.attr == "log" :]
            logger = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
            yield logger, LEVELS[node.func.attr], ast.literal_eval(message), len(facts)


def listed():
    """Yield (logger, level, message) of each row of the page's tables."""
    below = ""
    for line in (ROOT / "docs/guide/logs.md").read_text().splitlines():
        if found := re.match(r"\| logger, below `([\w.]+)`", line):
            below = found[1]
        elif found := re.match(r"\| `([\w.]+)` \| (\w+) \| `(.*?)` \|", line):
            yield f"{below}.{found[1]}", found[2], found[3]


def test_the_page_lists_each_record():
    records = list(logged())
    assert {record[:3] for record in records} == set(listed())
    for logger, _, message, facts in records:
        assert message.count("%") == facts, (logger, message)


def square(once, params, batch):
    """Kill the first worker that comes here, in the middle of a gradient."""
    with contextlib.suppress(FileExistsError), once.open("x") as file:
        file.write(str(os.getpid()))
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return ((batch @ params["w"]) ** 2).mean(), {"w": 2 * batch.T @ (batch @ params["w"]) / len(batch)}


def test_the_death_of_a_worker_is_a_record(tmp_path, caplog):
    caplog.set_level(logging.INFO, "untorn")
    model = functools.partial(square, tmp_path / "pid")
    with Trainer(model, {"w": np.ones(2)}, optimizer=SGD(0.01), workers=2, shards=2) as trainer:
        trainer.fit(np.ones((64, 2)), epochs=1, batch_size=4)
    (record,) = [each for each in caplog.records if each.name == "untorn.train.run.supervisor"]
    assert record.levelno == logging.INFO
    index, pid, where, how = record.args
    assert pid == int((tmp_path / "pid").read_text())
    assert where.startswith(" in epoch 0, step 0, shard ")
    assert how == "was killed by SIGKILL, and not by the kernel for lack of memory"
    assert record.getMessage() == f"worker {index} (pid {pid}){where} {how}; another takes its place"
