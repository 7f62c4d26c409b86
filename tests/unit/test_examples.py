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
    "cluster.py": ["--epochs", "3"],
    "dataframe.py": ["--rows", "20000", "--days", "3"],
    "dataset.py": ["--epochs", "1"],
    "dictionary.py": ["--entries", "50000", "--readers", "2"],
    "gan.py": ["--epochs", "2"],
    "jax_digits.py": ["--workers", "2", "--epochs", "4"],
    "kills.py": ["--epochs", "3"],
    "large_array.py": ["--megabytes", "8", "--readers", "2", "--versions", "6"],
    "live_model.py": ["--workers", "2", "--requests", "100"],
    "mnist_like.py": [],
    "own_loop.py": ["--workers", "2", "--epochs", "3"],
    "plain_loop.py": ["--workers", "2", "--epochs", "2"],
    "pool.py": ["--megabytes", "8", "--tasks", "4"],
    "actor_learner.py": ["--actors", "2", "--updates", "4", "--kills", "1"],
    "loader.py": ["--workers", "2", "--batches", "30", "--kill"],
    "queues.py": ["--clients", "2", "--epochs", "4", "--kills", "2"],
    "resume.py": ["--kills", "1", "--epochs", "3"],
    "sensor.py": ["--interval", "0.005"],
    "shards.py": ["--epochs", "1"],
    "sparse_matrix.py": ["--rows", "2000", "--tasks", "3"],
    "staleness.py": ["--epochs", "2"],
    "store.py": [],
    "threads.py": ["--seconds", "0.3"],
    "torn.py": ["--seconds", "1", "--elements", "500", "--readers", "2"],
    "watched.py": ["--epochs", "2"],
    "web_workers.py": ["--kills", "1"],
}


def start(name, *arguments, cwd=None):
    return subprocess.Popen(
        [sys.executable, EXAMPLES / name, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_small(name, *arguments):
    out, err = run_both(name, *arguments)
    assert err == ""
    return out


def run_both(name, *arguments, cwd=None):
    """(stdout, stderr), where progress goes."""
    process = start(name, *SMALL_SETTINGS[name], *arguments, cwd=cwd)
    out, err = process.communicate(timeout=WATCHDOG_S)
    assert process.returncode == 0, err
    return out, err


def test_every_example_is_run_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SMALL_SETTINGS)


def test_queues_checks_every_gradient_and_learns():
    *epochs, last, killed = run_small("queues.py").splitlines()
    assert killed == "2 clients were killed; the weights are the same as without"
    losses = [float(re.search(r"loss ([\d.]+)", line)[1]) for line in epochs]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert re.fullmatch(r"(\d+) gradients checked: each was computed on the weights of its epoch", last)
    assert int(last.split()[0]) == 4 * 12


def test_loader_gives_the_same_batches_for_any_workers_and_kills():
    (line,) = run_small("loader.py").splitlines()
    first, second = re.fullmatch(r"30 batches in [\d.]+ s, checksum (\w+); with one worker (\w+)", line).groups()
    assert first == second


def test_actor_learner_learns_from_lagging_actors():
    pytest.importorskip("gymnasium", reason="the extra rl is not installed")
    *lags, last = run_small("actor_learner.py").splitlines()
    assert re.fullmatch(r"mean return of the last 100 episodes [\d.]+, 1 actors killed, mean lag [\d.]+", last)
    assert all(line.startswith("lag ") for line in lags)


def test_torn_shows_torn_reads_with_array_and_none_with_untorn():
    _, array, untorn = run_small("torn.py").splitlines()
    reads, torn = (int(cell.replace(",", "")) for cell in array.split()[1:3])
    assert 0 < torn <= reads
    reads, torn = (int(cell.replace(",", "")) for cell in untorn.split()[1:3])
    assert torn == 0
    assert reads > 0


@pytest.mark.parametrize(("server", "packages"), [("gunicorn", ["gunicorn"]), ("uvicorn", ["fastapi", "uvicorn"])])
def test_web_workers_answer_with_the_newest_model_while_its_publisher_is_killed(server, packages):
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'untorn[test]'")
    answers, newest = run_small("web_workers.py", "--server", server).splitlines()
    total = re.fullmatch(r"([\d,]+) answers of 2 workers, 0 failed, 0 torn", answers)[1]
    assert int(total.replace(",", "")) > 0
    assert re.fullmatch(r"killed 1 times; every worker answered with a model newer than [\d,]+", newest)


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


def test_mnist_like_learns_in_25_lines(tmp_path):
    assert len((EXAMPLES / "mnist_like.py").read_text().splitlines()) <= 25
    out, err = run_both("mnist_like.py", cwd=tmp_path)
    assert float(re.fullmatch(r"test accuracy ([\d.]+)%\n", out)[1]) > 80
    assert [line[:9] for line in err.splitlines()] == [f"epoch {n}/4" for n in (1, 2, 3, 4)]
    assert (tmp_path / "digits.pt").exists()


def test_the_networks_of_a_gan_take_turns():
    losses, bright, _ = run_small("gan.py").splitlines()
    of_discriminator, of_generator = map(float, re.findall(r"net[DG] (\d\.\d+)", losses))
    assert of_discriminator < 1.3 < of_generator + 1
    assert re.fullmatch(r"share of bright pixels: drawn 0\.141, made 0\.\d+", bright)


def test_own_loop_learns_and_marks_what_changed():
    *epochs, weights = run_small("own_loop.py").splitlines()
    losses = [float(re.search(r"loss ([\d.]+)", line)[1]) for line in epochs]
    assert losses[-1] < losses[0] / 2
    assert re.fullmatch(r"weights \w{16}", weights)
    assert (EXAMPLES / "own_loop.py").read_text().count("# [untorn]") == 4


def test_plain_loop_and_any_number_of_workers_agree():
    plain, one, difference, *shared = run_small("plain_loop.py").splitlines()
    assert plain.split()[-3] == one.split()[-3]  # the accuracies
    assert float(re.search(r"differ by (\S+) at most", difference)[1]) < 1e-5
    assert len(shared) == 2
    assert len({line.split()[-1] for line in shared}) == 1


def test_watched_job_says_how_it_goes(name):
    out, err = run_both("watched.py", "--name", name)
    assert out == ""
    assert [line[:9] for line in err.splitlines()] == ["epoch 1/2", "epoch 2/2"]


def test_shards_decide_the_weights_and_workers_do_not():
    _, *lines = run_small("shards.py").splitlines()
    rows = [(int(shards), int(workers), weights) for shards, workers, _, weights in map(str.split, lines)]
    assert [row[:2] for row in rows] == [(shards, workers) for shards in (1, 2, 8) for workers in (1, 2, 3)]
    assert len({weights for _, _, weights in rows}) == len({(shards, weights) for shards, _, weights in rows}) == 3


def test_staleness_compares_both_modes():
    _, *lines = run_small("staleness.py").splitlines()
    assert [line.split()[:2] for line in lines] == [["sync", "-"], ["async", "3"], ["async", "15"]]


def test_kills_change_nothing():
    alone, killed = run_small("kills.py").splitlines()
    assert re.search(r": (\w{12})", killed)[1] == alone.split()[-1]
    assert int(killed.split()[0]) > 0


def test_cluster_prints_the_same_weights_three_times():
    lines = run_small("cluster.py").splitlines()
    assert [line[:20].strip() for line in lines] == ["this process alone:", "2 worker processes:", "3 nodes, 1 lost:"]
    assert len({line[20:] for line in lines}) == 1
    assert len(lines[0][20:].strip()) == 16


def test_resume_gives_the_weights_of_a_training_without_a_kill():
    *begun, killed, straight = run_small("resume.py").splitlines()
    assert begun in (["training ... killed"], ["training ... done"])
    assert killed.split()[-1] == straight.split()[-1]


def test_dataset_gives_the_same_weights_as_arrays():
    lines = run_small("dataset.py").splitlines()
    assert len(lines) == 3
    assert len({line[16:] for line in lines}) == 1


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
