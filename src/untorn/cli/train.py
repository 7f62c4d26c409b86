"""``untorn train RECIPE``: train a model, show the progress, and print the results.

Progress goes to stderr. Results go to stdout, one per line as a key, two spaces and a value, so that ``grep`` and
``awk -F '  '`` can read them. The keys and their order are stable::

    test accuracy  0.9778
    test loss  0.0881
    examples/s  123,456
    seconds  1.74
    sha256  c8a4...
    plot  curve.png
    saved  weights.safetensors
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, Literal

import click

from untorn.cli.errors import INTERRUPTED, reported
from untorn.cli.signals import Ended, cleaning_up_after_signals
from untorn.jobs import Recipe, load_recipe
from untorn.train import Callback, History, ProgressBar, TensorBoard, Trainer, weights_sha256
from untorn.train.callbacks import Logs
from untorn.train.interfaces import EngineName, Mode

__all__ = ["train"]

_AT_LEAST_1 = click.IntRange(min=1)


class _Workers(click.ParamType):  # type: ignore[type-arg]  # only newer versions of click make it generic
    """A number of at least 1, or "auto"."""

    name = "workers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """See click.ParamType."""
        return "auto" if value == "auto" else int(_AT_LEAST_1.convert(value, param, ctx))


@click.command(short_help="Train a model by a recipe.")
@click.argument("recipe", metavar="RECIPE")
@click.option(
    "--workers",
    type=_Workers(),
    metavar="N|auto",
    help="Number of worker processes, of each node if there are nodes; auto, without nodes, finds the fastest.  "
    "[default: the number of processors]",
)
@click.option(
    "--engine",
    type=click.Choice(["serial", "processes", "ray", "loopback"]),
    default="processes",
    show_default=True,
    help="Where gradients are computed: in this process, in worker processes, on the nodes of a Ray cluster, or on "
    "nodes that are processes of this machine.",
)
@click.option(
    "--nodes",
    type=_AT_LEAST_1,
    help="ray, loopback: number of nodes, each with --workers workers.  [default: all of the Ray cluster; loopback: 2]",
)
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="ray: address of the cluster.  [default: RAY_ADDRESS, or the one that runs here]",
)
@click.option("--epochs", type=_AT_LEAST_1, help="Passes over the data.  [default: the recipe's]")
@click.option(
    "--batch-size", type=_AT_LEAST_1, help="Examples per step, for all workers together.  [default: the recipe's]"
)
@click.option(
    "--mode",
    type=click.Choice(["sync", "async"]),
    default="sync",
    show_default=True,
    help="async: each worker computes whole batches, and gradients are applied as they arrive.",
)
@click.option(
    "--max-staleness",
    type=click.IntRange(min=0),
    metavar="K",
    help="async: how often the weights may change between the computation of a gradient and its use.  "
    "[default: --workers]",
)
@click.option(
    "--shards",
    type=_AT_LEAST_1,
    help="Number of parts of a batch, on which the result depends.  [default: the recipe's, or --workers, times "
    "--nodes if there are nodes]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all random numbers.")
@click.option("--plot", type=click.Path(dir_okay=False), help="Write the learning curve here (.png, .svg, .pdf).")
@click.option(
    "--save",
    type=click.Path(dir_okay=False),
    help="Write a checkpoint of the weights here, for Trainer.load; after Ctrl-C too.",
)
@click.option(
    "--name",
    metavar="NAME",
    help="Publish the weights under this name, which untorn.subscribe, top, join and leave take.",
)
@click.option(
    "--checkpoint-dir",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="Write checkpoints here, after each epoch and every five minutes.",
)
@click.option("--resume", is_flag=True, help="Resume from the newest checkpoint in --checkpoint-dir, if there is one.")
@click.option(
    "--tensorboard", metavar="DIR", type=click.Path(file_okay=False), help="Write events for TensorBoard here."
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def train(
    *,
    recipe: str,
    workers: int | Literal["auto"] | None,
    engine: EngineName,
    nodes: int | None,
    address: str | None,
    mode: Mode,
    max_staleness: int | None,
    epochs: int | None,
    batch_size: int | None,
    shards: int | None,
    seed: int,
    plot: str | None,
    save: str | None,
    name: str | None,
    checkpoint_dir: str | None,
    resume: bool,
    tensorboard: str | None,
    debug: bool,
) -> None:
    """Train by RECIPE and print the test accuracy, the speed and the SHA-256 of the weights.

    RECIPE is a name (known: digits), or FILE.py:NAME for an untorn.jobs.Recipe, or a function that returns one, in a
    file of your own. Equal --seed and --shards give equal weights, whatever the engine and the numbers of workers and
    nodes, and however often training was stopped and resumed with --resume. With --mode async the weights also depend
    on the workers' timing.
    """
    if max_staleness is not None and mode == "sync":
        raise click.UsageError("--max-staleness needs --mode async: in sync mode no gradient is stale")
    if shards is not None and mode == "async":
        raise click.UsageError("--shards needs --mode sync: in async mode a batch is computed in one piece")
    if resume and checkpoint_dir is None:
        raise click.UsageError("--resume needs --checkpoint-dir DIR, which has the checkpoints")
    if nodes is not None and engine in ("serial", "processes"):
        raise click.UsageError(f"--nodes needs --engine ray or loopback: {engine} has this machine alone")
    if address is not None and engine != "ray":
        raise click.UsageError("--address needs --engine ray")
    with reported(debug=debug):
        if plot is not None:
            _check_plot(plot)
        if save is not None:
            _check_folder("--save", save)
        loaded = load_recipe(recipe, seed=seed)
        trainer = Trainer(
            loaded.model,
            loaded.initial_params(seed),
            optimizer=loaded.optimizer,
            workers=workers,
            engine=engine,
            nodes=nodes,
            ray_options=None if address is None else {"address": address},
            mode=mode,
            max_staleness=max_staleness,
            shards=loaded.shards if shards is None and mode == "sync" else shards,
            seed=seed,
            name=name,
        )
        _run(
            loaded,
            trainer,
            epochs=loaded.epochs if epochs is None else epochs,
            batch_size=loaded.batch_size if batch_size is None else batch_size,
            plot=plot,
            save=save,
            name=name,
            checkpoint_dir=checkpoint_dir,
            resume=resume,
            more=[] if tensorboard is None else [TensorBoard(tensorboard)],
        )


def _run(
    recipe: Recipe,
    trainer: Trainer,
    *,
    epochs: int,
    batch_size: int,
    plot: str | None,
    save: str | None,
    name: str | None,
    checkpoint_dir: str | None,
    resume: bool,
    more: list[Callback],
) -> None:
    """Train and print the results. The exit status is 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP; then the
    files are written as well, with what there is."""
    progress = _Progress(checkpoint_dir if resume else None)
    bar = ProgressBar()
    started = time.perf_counter()
    try:
        with cleaning_up_after_signals(), trainer, contextlib.closing(bar):
            _say(f"{recipe.name}: {recipe.description}" if recipe.description else recipe.name)
            if name is not None:
                _say(f'from other processes: untorn top {name}, untorn join {name}, untorn.subscribe("{name}")')
            held_out = recipe.load_validation_data()
            try:
                history = trainer.fit(
                    recipe.load_data(),
                    epochs=epochs,
                    batch_size=batch_size,
                    validation_data=held_out,
                    callbacks=[progress, bar, *more],
                    checkpoint_dir=checkpoint_dir,
                    resume=resume,
                )
            except (KeyboardInterrupt, Ended):
                if trainer.step:
                    _write(trainer, progress.history, plot, save)
                raise
            progress.finished = True
            if trainer.tuner is not None:
                _say(f"--workers auto: {trainer.tuner}")
            seconds = time.perf_counter() - started
            tested = {} if held_out is None else trainer.evaluate(held_out)
            digest = weights_sha256(trainer.params)
            _write(trainer, history, plot, save)
    except KeyboardInterrupt:
        _say(f"interrupted {progress}")
        raise SystemExit(INTERRUPTED) from None
    except Ended as ended:
        _say(f"ended by {ended.signal.name} {progress}")
        raise
    _print_results(tested, history, seconds=seconds, digest=digest, plot=plot, save=save)


def _write(trainer: Trainer, history: History, plot: str | None, save: str | None) -> None:
    """Write the files that were asked for; a learning curve needs an epoch."""
    if save is not None:
        trainer.save(save)
    if plot is not None and history.epoch:
        history.plot(plot)


def _print_results(
    tested: dict[str, float], history: History, *, seconds: float, digest: str, plot: str | None, save: str | None
) -> None:
    order = sorted(tested, key=lambda metric: (metric != "accuracy", metric == "loss"))
    rows = [(f"test {metric}", f"{tested[metric]:.4f}") for metric in order]
    examples = sum(rate * each for rate, each in zip(history.examples_per_s, history.seconds, strict=True))
    training_seconds = sum(history.seconds)
    if training_seconds > 0:
        rows.append(("examples/s", f"{examples / training_seconds:,.0f}"))
    rows += [("seconds", f"{seconds:.2f}"), ("sha256", digest)]
    if plot is not None:
        rows.append(("plot", plot))
    if save is not None:
        rows.append(("saved", save))
    for key, value in rows:
        click.echo(f"{key}  {value}")


def _check_plot(plot: str) -> None:
    """Check before training that the plot can be drawn and written. Raises an error if not."""
    _check_folder("--plot", plot)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("--plot needs matplotlib, which is not installed: pip install 'untorn[plot]'") from None
    known = Figure().canvas.get_supported_filetypes()
    ending = Path(plot).suffix.removeprefix(".").lower()
    if ending and ending not in known:
        raise ValueError(f"--plot {plot}: unknown format {ending!r}; expected one of {', '.join(sorted(known))}")


def _check_folder(option: str, file: str) -> None:
    folder = Path(file).absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{option} {file}: there is no folder {str(folder)!r}")


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # a closed stderr is no reason to stop training
        click.echo(line, err=True)


class _Progress(Callback):
    """Remembers how far training has come, for the message after Ctrl-C, and says where it resumes."""

    def __init__(self, resumed: str | None) -> None:
        self._resumed = resumed
        self._epoch: int | None = None
        self._epochs = 0
        #: the epochs so far, for a plot after Ctrl-C
        self.history = History()
        #: whether fit has returned; on_train_end does not tell, since it is also called after Ctrl-C
        self.finished = False

    def on_train_begin(self, logs: Logs) -> None:
        if self._resumed is not None:
            step = self.trainer.step
            _say(f"resuming at step {step:,}" if step else f"no checkpoint in {self._resumed} yet; training begins")

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        self._epoch, self._epochs = epoch, int(logs["epochs"])

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        speed = {name: logs[name] for name in ("seconds", "examples_per_s")}
        metrics = {name: value for name, value in logs.items() if name not in (*speed, "learning_rate", "staleness")}
        self.history.append(epoch, metrics, **speed)

    def __str__(self) -> str:
        if self.finished:
            return "after training"
        if self._epoch is None:
            return "before the first epoch"
        return f"in epoch {self._epoch + 1} of {self._epochs}"
