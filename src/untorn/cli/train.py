"""``untorn train JOB``: run a job, show how it goes, and say what came of it.

Progress goes to stderr. What came of it goes to stdout, a line each, key and value with two spaces between, so that
other programs can read it::

    test accuracy  0.9806
    test loss  0.0713
    examples/s  123,456
    seconds  1.9
    sha256  5b0c...
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from untorn.jobs import Job
    from untorn.train import History, Trainer

__all__ = ["train"]

_AT_LEAST_1 = click.IntRange(min=1)


@click.command()
@click.argument("job", metavar="JOB")
@click.option("--workers", type=_AT_LEAST_1, help="Worker processes.  [default: the processors there are]")
@click.option(
    "--engine",
    type=click.Choice(["serial", "processes"]),
    default="processes",
    show_default=True,
    help="serial trains in this process, with the same result.",
)
@click.option("--epochs", type=_AT_LEAST_1, help="Passes over the data.  [default: the job's]")
@click.option("--batch-size", type=_AT_LEAST_1, help="Examples per step, of all workers.  [default: the job's]")
@click.option(
    "--shards",
    type=_AT_LEAST_1,
    help="Parts that each batch is cut into; the result depends on it.  [default: the job's, else the workers]",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the split, the first weights and the order of the examples.",
)
@click.option(
    "--plot",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the learning curves there (.png, .svg, .pdf).",
)
@click.option("--name", metavar="CHANNEL", help="Publish the weights under this name while training runs.")
def train(
    job: str,
    *,
    workers: int | None,
    engine: str,
    epochs: int | None,
    batch_size: int | None,
    shards: int | None,
    seed: int,
    plot: Path | None,
    name: str | None,
) -> None:
    r"""Train JOB: a name that untorn knows, or FILE.py:NAME.

    The result depends on the job, --seed and --shards alone, not on how many workers there are: equal runs end with
    the same sha256.

    \b
    untorn train digits --workers 2
    untorn train digits --shards 4 --engine serial --plot curve.png
    untorn train mine.py:job --name policy
    """
    from untorn.jobs import load_job
    from untorn.train import Trainer

    started = time.perf_counter()
    if plot is not None:
        _check_plot(plot)
    found = load_job(job, seed=seed)
    validation_data = found.load_validation_data()
    epochs = found.epochs if epochs is None else epochs
    batch_size = found.batch_size if batch_size is None else batch_size
    with Trainer(
        found.model,
        found.initial_params(seed),
        optimizer=found.optimizer,
        workers=workers,
        engine=engine,
        shards=found.shards if shards is None else shards,
        seed=seed,
        name=name,
    ) as trainer:
        _announce(found, trainer, epochs=epochs, batch_size=batch_size, name=name)
        history = _fit(trainer, found.load_data(), validation_data, epochs=epochs, batch_size=batch_size)
        _summarise(trainer, history, validation_data)
    if plot is not None:
        history.plot(plot)
        _say("plot", str(plot))
    _say("seconds", f"{time.perf_counter() - started:.2f}")


def _fit(trainer: Trainer, data: Any, validation_data: Any, *, epochs: int, batch_size: int) -> History:
    """Train with progress on stderr. Ctrl-C says how far it came and exits with 130."""
    from untorn.train import ProgressBar

    progress = ProgressBar()
    try:
        return trainer.fit(
            data,
            epochs=epochs,
            batch_size=batch_size,
            validation_data=validation_data,
            callbacks=[progress],
        )
    except KeyboardInterrupt:
        progress.close()
        where = f"in epoch {trainer.epoch + 1} of {epochs}, after {trainer.step:,} steps"
        click.echo(f"stopped by Ctrl-C {where}", err=True)
        raise click.exceptions.Exit(130) from None
    finally:
        progress.close()


def _announce(job: Job, trainer: Trainer, *, epochs: int, batch_size: int, name: str | None) -> None:
    who = "in this process" if trainer.engine == "serial" else f"{_count(trainer.workers, 'worker')}"
    what = f"{job.name}: {job.description}" if job.description else job.name
    click.echo(what, err=True)
    click.echo(
        f"{_count(epochs, 'epoch')}, batches of {batch_size}, {who}, {_count(trainer.shards, 'shard')}, "
        f"seed {trainer.seed}",
        err=True,
    )
    if name is not None:
        click.echo(
            f"follow the weights from any other process while this runs:\n"
            f"    for snap in untorn.subscribe({name!r}): print(snap.version, snap.value)",
            err=True,
        )


def _summarise(trainer: Trainer, history: History, validation_data: Any) -> None:
    """The results, while the trainer still has the weights."""
    from untorn.train import weights_sha256

    if validation_data is None:
        results = {f"training {name}": values[-1] for name, values in history.history.items()}
    else:
        results = {f"test {name}": value for name, value in trainer.evaluate(validation_data).items()}
    for name in sorted(results, key=lambda name: name.endswith(" loss")):  # what people look for comes first
        _say(name, f"{results[name]:.4f}")
    # Every epoch has the same number of examples, so the speed of the whole is the harmonic mean.
    seconds_per_example = sum(1 / speed for speed in history.examples_per_s) / len(history.examples_per_s)
    _say("examples/s", f"{1 / seconds_per_example:,.0f}")
    _say("sha256", weights_sha256(trainer.params))


def _say(key: str, value: str) -> None:
    click.echo(f"{key}  {value}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _check_plot(path: Path) -> None:
    """Fail before training rather than after it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("--plot needs matplotlib, which is not installed; pip install 'untorn[plot]'") from None
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"--plot {path}: there is no folder {folder}")
    endings = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in endings:
        raise ValueError(f"--plot {path}: expected an ending such as .png, .svg or .pdf")
