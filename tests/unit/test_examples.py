"""Every program under examples/ runs as a newcomer would run it, and says what it promises to say."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
WATCHDOG_S = 120

SMALL_SETTINGS = {
    "dataframe.py": ["--rows", "20000", "--days", "3"],
    "dictionary.py": ["--entries", "50000", "--readers", "2"],
    "jax_digits.py": ["--workers", "2", "--epochs", "4"],
    "large_array.py": ["--megabytes", "8", "--readers", "2", "--versions", "6"],
    "live_model.py": ["--workers", "2", "--requests", "100"],
    "mnist_like.py": ["--epochs", "2"],
    "pool.py": ["--megabytes", "8", "--tasks", "4"],
    "queues.py": ["--clients", "2", "--epochs", "4"],
    "sparse_matrix.py": ["--rows", "2000", "--tasks", "3"],
    "store.py": [],
    "threads.py": ["--seconds", "0.3"],
    "torn.py": ["--seconds", "1", "--elements", "500", "--readers", "2"],
}


def start(name, *arguments):
    return subprocess.Popen(
        [sys.executable, EXAMPLES / name, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_small(name, *arguments):
    process = start(name, *SMALL_SETTINGS[name], *arguments)
    out, err = process.communicate(timeout=WATCHDOG_S)
    assert process.returncode == 0, err
    assert err == ""
    return out


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SMALL_SETTINGS)


def test_queues_checks_every_gradient_and_learns():
    *epochs, last = run_small("queues.py").splitlines()
    losses = [float(re.search(r"loss ([\d.]+)", line)[1]) for line in epochs]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert re.fullmatch(r"(\d+) gradients checked: each was computed on the weights of its epoch", last)
    assert int(last.split()[0]) == 4 * 12


def test_torn_shows_torn_reads_with_array_and_none_with_untorn():
    _, array, untorn = run_small("torn.py").splitlines()
    reads, torn = (int(cell.replace(",", "")) for cell in array.split()[1:3])
    assert 0 < torn <= reads
    reads, torn = (int(cell.replace(",", "")) for cell in untorn.split()[1:3])
    assert torn == 0
    assert reads > 0


def test_large_array_sees_whole_versions():
    lines = run_small("large_array.py").splitlines()
    assert lines[4].startswith("version 6 published in")
    for line in lines[5:]:
        total, whole = map(int, re.findall(r"\d+", line))
        assert 1 <= total == whole
    assert len(lines) == 7


def test_sparse_matrix_finds_neighbours():
    first, *tasks = run_small("sparse_matrix.py").splitlines()
    assert "20,000 numbers" in first
    assert [int(re.search(r"row (\d+) is most like row \d+", line)[1]) for line in tasks] == [0, 1, 2]


def test_dictionary_finds_half_of_its_keys():
    first, *readers = run_small("dictionary.py").splitlines()
    assert first.startswith("50,000 entries")
    assert [re.match(r"a reader found (\d+)%", line)[1] for line in readers] == ["50", "50"]


def test_dataframe_reports_each_day():
    lines = run_small("dataframe.py").splitlines()
    assert [line[:10] for line in lines] == ["version 1:", "version 2:", "version 3:"]
    assert all(city in lines[0] for city in ("Athens", "Oslo", "Quito"))


def test_threads_see_nothing_mixed():
    assert run_small("threads.py").endswith("0 mixed\n")


def test_live_model_gets_better():
    first, last = run_small("live_model.py").splitlines()
    errors = [float(line.rpartition(" ")[2]) for line in (first, last)]
    assert errors[1] < errors[0] / 10


def test_store_keeps_what_was_written(tmp_path):
    directory = ["--directory", str(tmp_path / "prices")]
    assert run_small("store.py", *directory, "write", "apple=1.2", "pear=0.8") == "version 1: 2 entries\n"
    assert run_small("store.py", *directory, "write", "plum=2.5") == "version 2: 3 entries\n"
    assert run_small("store.py", *directory, "read") == "apple 1.2\npear 0.8\nplum 2.5\n"
    assert run_small("store.py", *directory, "read", "fig") == "fig is not there\n"
    assert run_small("store.py", *directory, "remove") == ""
    assert not list((tmp_path / "prices").iterdir())


def test_mnist_like_learns():
    _, first, second, answer = run_small("mnist_like.py").splitlines()
    assert float(second.split()[1]) < float(first.split()[1])
    assert re.fullmatch(r"the first digit is a \d", answer)


def test_jax_digits_learns():
    _, accuracy, _ = run_small("jax_digits.py").splitlines()
    assert float(re.search(r"test accuracy ([\d.]+)%", accuracy)[1]) > 90


def test_pool_compares_three_ways():
    assert "Subscriber" in run_small("pool.py")


@pytest.mark.parametrize(
    ("name", "arguments", "first"),
    [
        ("queues.py", ["--epochs", "1000000"], "epoch   1"),
        ("torn.py", ["--seconds", "60"], "reads"),
    ],
)
def test_ctrl_c_ends_it_cleanly(name, arguments, first):
    process = start(name, *arguments)
    assert first in process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group gets it
    out, err = process.communicate(timeout=WATCHDOG_S)  # ends when the last child has closed the pipes
    assert process.returncode == 0, err
    assert "interrupted" in out
    assert err == ""
