"""The chunks that evaluate and predict cut the data into, and the collectors that combine the answers.

::

    Chunks ─> answer for each chunk, from this process or from a worker ─> Means: loss and metrics    (evaluate)
                                                                           Outputs: joined arrays     (predict)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from untorn.board import FailureReport
from untorn.errors import NonFiniteLossError, WorkerError
from untorn.train.models.checks import check_metric_names
from untorn.train.models.outputs import Form, flattened

__all__ = ["Answer", "Chunks", "Collector", "Evaluation", "Means", "Outputs"]

_Array = NDArray[Any]


@dataclass(frozen=True)
class Chunks:
    """The chunks of a number of examples. Also describes them in errors, as supervisor.Tasks: a step is a chunk here.

    Attributes:
        examples: the number of examples.
        size: the size of each chunk but the last.
    """

    examples: int
    size: int
    #: an evaluation is short, so repeated kills are caused by its data
    counts_kills: ClassVar[bool] = True

    @property
    def count(self) -> int:
        """The number of chunks."""
        return -(-self.examples // self.size)

    def indices(self, chunk: int) -> NDArray[np.int64]:
        """Return the indices of the examples of a chunk."""
        return np.arange(chunk * self.size, min(self.examples, (chunk + 1) * self.size))

    def describe(self, chunk: int) -> str:
        """Describe a chunk: "examples 50 to 99"."""
        indices = self.indices(chunk)
        return f"examples {indices[0]} to {indices[-1]}"

    def where(self, step: int, shard: int) -> str:
        """Return the place of a task: "at examples 50 to 99"."""
        return f"at {self.describe(step)}"

    def failure(self, report: FailureReport) -> Exception:
        """Return the error for the report of the first worker that failed."""
        described = self.describe(report.step)
        if report.non_finite:
            return NonFiniteLossError(f"{report.summary.split(': ', 1)[-1]} for {described}")
        return WorkerError(f"failed in worker {report.worker}, at {described}: {report.summary}", report.traceback)


class Answer(NamedTuple):
    """A worker's answer for a chunk.

    Attributes:
        names: the names of the metrics.
        measured: the loss, and the metrics in this order; more numbers may follow.
        payload: the outputs, laid out as Form.places() says; empty if they are not computed.
    """

    names: list[str]
    measured: NDArray[np.float64]
    payload: Any


@dataclass(frozen=True)
class Evaluation:
    """What workers compute for each chunk. It is pickled.

    Attributes:
        private: whether to read the weights through a private mapping, since the model's framework may write to them.
        chunks: the chunks of the data.
        seed: the seed of the trainer.
        form: the form of the outputs; empty if they are not computed.
        outputs: whether to compute the model's outputs instead of its loss and metrics.
        nbytes: the size of an answer's payload.
    """

    private: bool
    chunks: Chunks
    seed: int
    form: Form
    outputs: bool
    nbytes: int


class Collector(ABC):
    """Collects the answers for all chunks. Abstract."""

    #: whether the answers are the model's outputs; if not, its loss and metrics
    outputs: bool

    def __init__(self, chunks: Chunks) -> None:
        self.chunks = chunks
        #: the layout of the outputs in a buffer
        self.form = Form(None, (), ())

    @abstractmethod
    def begin(self, answer: Any) -> int:
        """Take the answer for the first chunk, computed in this process. Return the bytes that a worker's answer needs;
        -1 if all answers must be computed in this process."""

    @abstractmethod
    def take(self, chunk: int, answer: Any) -> None:
        """Take the answer for a chunk that was computed in this process."""

    @abstractmethod
    def take_answer(self, chunk: int, answer: Answer) -> None:
        """Take the answer for a chunk that a worker has computed."""

    @abstractmethod
    def result(self) -> Any:
        """Return the combination of all answers."""


class Means(Collector):
    """Loss and metrics, as means over the examples."""

    outputs = False

    def __init__(self, chunks: Chunks) -> None:
        super().__init__(chunks)
        self._answers: dict[int, dict[str, float]] = {}

    def begin(self, answer: Any) -> int:
        """See Collector."""
        self.take(0, answer)
        return 8

    def take(self, chunk: int, answer: Any) -> None:
        """See Collector."""
        self._answers[chunk] = {"loss": answer.loss} | dict(answer.metrics)

    def take_answer(self, chunk: int, answer: Answer) -> None:
        """See Collector."""
        names = ["loss", *answer.names]
        self._answers[chunk] = dict(zip(names, map(float, answer.measured[: len(names)]), strict=True))

    def result(self) -> dict[str, float]:
        """See Collector."""
        totals: dict[str, float] = {}
        for chunk in range(self.chunks.count):
            measured = self._answers[chunk]
            check_metric_names(list(totals or measured)[1:], list(measured)[1:])
            for name, value in measured.items():
                totals[name] = totals.get(name, 0.0) + value * len(self.chunks.indices(chunk))
        return {name: total / self.chunks.examples for name, total in totals.items()}


class Outputs(Collector):
    """The model's outputs, joined in the order of the examples."""

    outputs = True

    def __init__(self, chunks: Chunks) -> None:
        super().__init__(chunks)
        self._whole: list[_Array] | None = None
        self._answers: list[list[Any]] = []

    def begin(self, answer: Any) -> int:
        """See Collector."""
        parts, tree = flattened(answer)
        for name, part in parts:
            if np.ndim(part) == 0:
                raise TypeError(
                    f"predict: expected {f'arrays, as output {name} too,' if name else 'an array'} with one row per "
                    f"example, found a single {type(part).__name__}"
                )
        count = len(self.chunks.indices(0))
        plain = all(isinstance(part, np.ndarray) and not part.dtype.hasobject for _, part in parts)
        names = tuple(name for name, _ in parts)
        if not plain or any(part.shape[:1] != (count,) for _, part in parts):
            self.form = Form(tree, names, ())
            self._answers.append([part for _, part in parts])
            return -1
        self.form = Form(tree, names, tuple((part.shape[1:], part.dtype) for _, part in parts))
        self._whole = self.form.empty(self.chunks.examples)
        self.take(0, answer)
        return self.form.nbytes(self.chunks.size)

    def take(self, chunk: int, answer: Any) -> None:
        """See Collector."""
        if self._whole is None:
            self._answers.append([part for _, part in flattened(answer)[0]])
            return
        indices = self.chunks.indices(chunk)
        for whole, part in zip(self._whole, self.form.checked(answer, self.chunks.describe(chunk)), strict=True):
            whole[indices] = part

    def take_answer(self, chunk: int, answer: Answer) -> None:
        """See Collector."""
        assert self._whole is not None
        indices = self.chunks.indices(chunk)
        places = self.form.places(self.chunks.size, len(indices))
        for whole, (dtype, shape, offset) in zip(self._whole, places, strict=True):
            whole[indices] = np.ndarray(shape, dtype, answer.payload, offset)

    def result(self) -> Any:
        """See Collector."""
        if self._whole is None:
            return self.form.built([np.concatenate(parts) for parts in zip(*self._answers, strict=True)])
        return self.form.built(self._whole)
