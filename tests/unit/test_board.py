"""The board's Python face, against boards that the C side moves on, and against damaged ones."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import replace

import numpy as np
import pytest

import untorn
from helpers import descriptors, untorn_mappings
from untorn import _core
from untorn.board import Board, BoardSpec, KernelSettings, UpdateTask, pack_ranges
from untorn.errors import FormatError, NonFiniteLossError
from untorn.share import lowlevel
from untorn.train.run.parameter_layout import ParameterLayout

SPEC = BoardSpec(
    shards=3, max_workers=4, workers=2, is_async=False, steps=5, examples=7, batch_size=2, gradient_nbytes=640
)


@pytest.fixture
def create():
    """Creates boards, and closes them at the end; pytest would keep a board itself alive for too long."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(Board.create(SPEC))


class Weights:
    """A channel of weights, and a board whose one worker is this process."""

    def __init__(self, **spec):
        params = {"w": np.array([1.0, 2.0, 3.0])}
        self.plan = plan = ParameterLayout.of(params, None)
        self.publisher = untorn.publish(params)
        self.publisher.update(params)  # so that there are two slots
        self.attachment = lowlevel.attachment_of(self.publisher)
        arguments = {"shards": 1, "is_async": False} | spec
        self.spec = BoardSpec(
            max_workers=1, workers=1, steps=4, examples=8, batch_size=2, gradient_nbytes=plan.nbytes,
            first_version=self.publisher.version, ranges=plan.ranges(), **arguments,
        )  # fmt: skip
        self.board = Board.create(self.spec)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.board.close()
        self.publisher.close()

    def next(self):
        return self.board.next(self.attachment, 0, False, 0.0)

    def compute(self, gradient, *, examples, measured, version=0):
        """Take the next gradient and write this one; return the task's step and shard."""
        kind, step, shard, at = self.next()
        assert kind == _core.RUN_GRADIENT
        buffer = self.board.buffer(at)
        buffer.examples[0], buffer.version[0] = examples, version
        buffer.measured[: len(measured)] = measured
        (view,) = self.plan.gradient_views(self.board, at)
        view[:] = gradient
        ((place, nbytes, _),) = self.plan.gradient_places(buffer.payload_at)
        assert memoryview(self.board)[place : place + nbytes] == view.tobytes()
        assert self.board.commit(0)
        return step, shard

    def values(self):
        with self.publisher.subscriber() as reader:
            return reader.snapshot().value["w"].copy()


def test_what_python_writes_moves_the_steps_on_and_what_they_log_is_what_it_reads():
    with Weights(shards=2, clip_norm=100.0, kernels=(KernelSettings(weight_decay=0.5),)) as weights:
        board = weights.board
        board.rates[:] = [[0.1 * (1 + step), 1, 1, 0, 0] for step in range(4)]
        board.set_limit(2)
        metrics = np.arange(1.0, 1 + _core.BOARD_METRICS)
        assert weights.compute([1, 2, 2], examples=3, measured=[0.5, *metrics]) == (0, 0)
        assert weights.compute([5, 2, 2], examples=1, measured=[4.5, *(metrics + 4)]) == (0, 1)
        assert weights.compute([0, 0, 0], examples=2, measured=[7.0]) == (1, 0)
        log = board.log
        assert (log["examples"][0], log["loss"][0], log["staleness"][0]) == (4, 1.5, 0)
        assert (log["metrics"][0] == metrics + 1).all()
        assert log["grad_norm"][0] == pytest.approx(np.sqrt(12), rel=1e-15)
        assert not log[1:].tobytes().strip(b"\0")
        first = np.array([1.0, 2, 3])
        assert weights.values() == pytest.approx(first - 0.1 * ([2, 2, 2] + 0.5 * first), rel=1e-15)
        assert (board.step, board.commits) == (1, [3])


def test_an_in_flight_batch_says_where_its_gradient_is_and_how_stale_it_was():
    with Weights(is_async=True, shards=3) as weights:
        board, before = weights.board, weights.publisher.version
        assert board.is_async is True
        board.rates[:] = [0.5, 1, 1, 0, 0]
        assert board.in_flight(1).state == _core.TASK_EMPTY
        assert board.inflight_open(1, 11)
        assert not board.inflight_open(1, 12)
        weights.compute([2, 4, 6], examples=2, measured=[0.25], version=before - 1)
        done = board.in_flight(1)
        assert (done.state, done.batch, done.version) == (_core.TASK_DONE, 11, before - 1)
        assert board.buffer(done.buffer_at).measured[0] == 0.25
        board.inflight_apply(weights.attachment, 1, 0, 3)
        assert (board.log["staleness"][0], board.log["examples"][0]) == (3, 2)
        assert board.in_flight(1).state == _core.TASK_EMPTY
        assert weights.values() == pytest.approx([0, 0, 0])
        with pytest.raises(ValueError, match="in-flight batch 3: the board has 3"):
            board.in_flight(3)


class TestExchange:
    def test_workers_compute_their_own_shards_only_and_wait_for_the_others(self):
        with Weights(shards=3, exchange=True) as weights:
            board = weights.board
            assert (board.exchange, board.own_first, board.own_end) == (True, 0, 3)
            board.set_own(1, 2)
            assert (board.own_first, board.own_end) == (1, 2)
            board.rates[:] = [0.5, 1, 1, 0, 0]
            board.set_limit(1)
            assert weights.compute([1, 1, 1], examples=2, measured=[1.0]) == (0, 1)
            assert weights.next()[0] == _core.RUN_IDLE
            assert (board.step, board.incomplete_step) == (0, 0)
            board.set_own(0, 3)  # the others are gone
            assert weights.compute([2, 2, 2], examples=2, measured=[1.0]) == (0, 0)
            assert weights.compute([3, 3, 3], examples=2, measured=[4.0]) == (0, 2)
            assert board.incomplete_step == 1
            assert weights.next()[0] == _core.RUN_IDLE
            assert (board.step, board.incomplete_step, board.log["loss"][0]) == (1, 1, 2)
            assert weights.values() == pytest.approx([0, 1, 2])

    def test_a_board_without_exchange_has_all_shards(self, create):
        board = create()
        assert (board.exchange, board.own_first, board.own_end) == (False, 0, 3)
        with pytest.raises(ValueError, match="made without exchange"):
            board.set_own(0, 1)

    @pytest.mark.parametrize("shards", [(2, 1), (0, 4), (4, 4)])
    def test_shards_that_the_board_does_not_have(self, shards):
        with Board.create(replace(SPEC, exchange=True)) as board:
            with pytest.raises(ValueError, match=f"shards {shards[0]} to {shards[1]}: the board has 3"):
                board.set_own(*shards)
            assert (board.own_first, board.own_end) == (0, 3)

    def test_batches_in_flight_have_no_sum(self):
        with pytest.raises(ValueError, match="exchange"):
            Board.create(replace(SPEC, exchange=True, is_async=True))


def test_the_structs_have_no_gap_but_padding_at_the_end():
    for layout in (_core.BOARD_LOG_LAYOUT, _core.BOARD_RANGE_LAYOUT, _core.BOARD_BUFFER_LAYOUT):
        dtype, end = np.dtype(layout), 0
        for name in dtype.names:
            field, offset = dtype.fields[name]
            assert offset == end, name
            end += field.itemsize
        assert end == dtype.itemsize or layout is _core.BOARD_BUFFER_LAYOUT
    assert np.dtype(_core.BOARD_BUFFER_LAYOUT).itemsize % 64 == 0
    assert len(pack_ranges([UpdateTask(1, 2, 3, 1, 2, 0)] * 2)) == 2 * np.dtype(_core.BOARD_RANGE_LAYOUT).itemsize


def test_a_board_that_is_opened_is_the_one_that_was_created(create):
    board = create()
    other = Board.open(board.path)
    assert (other.job, other.shards, other.workers, other.active) == (board.job, 3, 4, 2)
    assert (other.steps, other.examples, other.batch_size, other.is_async) == (5, 7, 2, False)
    board.order[:] = np.arange(7)[::-1]
    board.rates[4] = [1, 2, 3, 4, 5]
    board.log["metrics"][4, -1] = 5
    assert (other.order == np.arange(7)[::-1]).all()
    assert (other.rates[4] == [1, 2, 3, 4, 5]).all()
    assert other.log["metrics"][4, -1] == 5
    assert other.fd == -1
    assert os.fstat(board.fd).st_size == memoryview(board).nbytes


def test_no_section_runs_into_another(create):
    board = create()
    for number, view in enumerate((board.order, board.rates, board.log), 1):
        view[:] = np.full(view.nbytes, number, np.uint8).view(view.dtype).reshape(view.shape)
    board.write_metric_names(["accuracy"])
    board.report_failure(3, 1, 2, ValueError("no"), "lines")
    for number, view in enumerate((board.order, board.rates, board.log), 1):
        assert set(view.tobytes()) == {number}
    assert board.metric_names == ["accuracy"]


def test_jobs_have_different_numbers():
    with Board.create(SPEC) as one, Board.create(SPEC) as other:
        assert one.job != other.job
        assert one.job > 0 < other.job


def test_closing_ends_the_path_and_keeps_the_memory(create):
    board = create()
    path, order = board.path, board.order
    board.close()
    board.close()
    with pytest.raises(FileNotFoundError):
        Board.open(path)
    order[:] = 3
    assert (board.order == 3).all()


def test_a_board_that_is_dropped_closes_its_file():
    before = descriptors()
    board = Board.create(SPEC)
    assert descriptors() != before
    del board
    assert descriptors() == before


def test_the_memory_goes_with_the_last_view(create):
    board = create()
    before = len(untorn_mappings())
    other = Board.open(board.path)
    assert len(untorn_mappings()) == before + 1
    log = other.log["loss"]
    del other
    assert len(untorn_mappings()) == before + 1
    log[0] = 1.5
    del log
    assert len(untorn_mappings()) == before
    assert board.log["loss"][0] == 1.5


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"shards": 0}, ValueError),
        ({"workers": 5}, ValueError),
        ({"ranges": b""}, ValueError),
        ({"kernels": (KernelSettings(optimizer=9),)}, ValueError),
        ({"kernels": ((1, 2.0),)}, TypeError),
        ({"kernels": ()}, ValueError),
        ({"kernels": (KernelSettings(),) * 257}, ValueError),
        ({"ranges": pack_ranges([UpdateTask(0, 0, 0, group=1)])}, ValueError),
        ({"ranges": pack_ranges([UpdateTask(0, 0, 0, kind=_core.MERGE_SHARD, group=3)])}, ValueError),
        ({"ranges": pack_ranges([UpdateTask(0, 0, 8, kind=_core.MERGE_ROWS, row=2)])}, ValueError),
        ({"sets_at": 1 << 40, "sets_nbytes": 64}, ValueError),
        ({"gradient_nbytes": 2**60}, (OSError, _core.StatusError)),
    ],
)
def test_a_board_that_cannot_be_made_leaves_no_file(change, expected):
    before = descriptors()
    with pytest.raises(expected):
        Board.create(replace(SPEC, **change))
    assert descriptors() == before


class TestMetricNames:
    def test_there_are_none_at_first(self, create):
        board = create()
        assert board.metric_names == []

    def test_what_was_written_is_read(self, create):
        board = create()
        board.write_metric_names(("accuracy", "größe"))
        assert Board.open(board.path).metric_names == ["accuracy", "größe"]

    def test_the_first_names_are_those_of_the_job(self, create):
        board = create()
        other = Board.open(board.path)
        assert board.write_metric_names(["accuracy"])
        assert other.write_metric_names(["accuracy"])
        assert not other.write_metric_names([])
        assert board.metric_names == other.metric_names == ["accuracy"]

    def test_names_that_are_too_long_change_nothing(self, create):
        board = create()
        board.write_metric_names(["x" * (_core.BOARD_NAMES_NBYTES - 5)])  # with brackets, quotes and an end
        with pytest.raises(ValueError, match="too long"):
            board.write_metric_names(["y" * (_core.BOARD_NAMES_NBYTES - 4)])
        assert board.metric_names == ["x" * (_core.BOARD_NAMES_NBYTES - 5)]


class TestFailure:
    def test_there_is_none_at_first(self, create):
        board = create()
        assert board.failure is None

    def test_the_first_report_stands(self, create):
        board = create()
        Board.open(board.path).report_failure(2, 5, 1, NonFiniteLossError("inf"), "its lines")
        board.report_failure(1, 6, 0, ValueError("later"), "others")
        assert board.failure == (2, 5, 1, True, "NonFiniteLossError: inf", "its lines")
        assert board.failure.non_finite is True

    def test_an_error_that_cannot_be_shown(self, create):
        board = create()

        class MuteError(Exception):
            def __str__(self):
                raise KeyError("no message")

        board.report_failure(0, 0, 0, MuteError(), "")
        assert board.failure.summary == "MuteError: (its message cannot be shown: KeyError)"

    def test_of_a_long_traceback_the_newest_lines_are_kept(self, create):
        board = create()
        board.report_failure(3, 0, 0, ValueError("é" * 10_000), "é" * 100_000 + "the end")
        report = board.failure
        assert report.traceback.endswith("é" * 1000 + "the end")
        assert report.summary.startswith("ValueError: éé")


class TestDamagedBoards:
    """The header is shared memory; its values are checked before each view."""

    @pytest.mark.parametrize("place", [lambda end: end - 8, lambda end: end, lambda end: 2**64 - 8, lambda end: 2**63])
    @pytest.mark.parametrize(
        ("section", "read"),
        [
            ("order_at", lambda board: board.order),
            ("rates_at", lambda board: board.rates),
            ("log_at", lambda board: board.log),
            ("names_at", lambda board: board.metric_names),
            ("errors_at", lambda board: board.failure),
        ],
    )
    def test_a_section_outside_is_refused(self, create, section, read, place):
        board = create()
        board.fail(0)
        overwrite(board, getattr(board, section), place(memoryview(board).nbytes))
        with pytest.raises(FormatError, match="outside its board"):
            read(board)
        with pytest.raises(_core.StatusError, match="format"):
            Board.open(board.path)

    @pytest.mark.parametrize("count", [2**32, 2**61, 2**63, 2**64 - 1])
    def test_a_length_that_overflows_is_refused(self, create, count):
        board = create()
        overwrite(board, SPEC.examples, count)
        with pytest.raises(FormatError, match="outside its board"):
            _ = board.order
        with pytest.raises(_core.StatusError, match="format"):
            Board.open(board.path)

    @pytest.mark.parametrize("change", [-100, -8, 0, 8, 2**63])
    def test_a_buffer_outside_is_refused(self, create, change):
        board = create()
        at = memoryview(board).nbytes + change
        with pytest.raises(FormatError, match="outside its board"):
            board.buffer(at)
        with pytest.raises(FormatError, match="outside its board"):
            board.payload_array(at, np.float64, (1,), 0)
        if change < 2**62:
            with pytest.raises(ValueError, match="strides"):
                board.payload_array(at, np.float64, (2, 2), 0, (8, 16))

    def test_a_file_that_is_no_board(self, tmp_path):
        path = tmp_path / "file"
        for content in (bytes(100), bytes(10_000)):
            path.write_bytes(content)
            with pytest.raises(_core.StatusError, match="format"):
                Board.open(str(path))
        path.write_bytes(b"")
        with pytest.raises(OSError) as caught:
            Board.open(str(path))
        assert caught.value.errno == errno.EINVAL


def overwrite(board, old, new):
    """Put another number where the header has this one."""
    header = np.frombuffer(memoryview(board)[:512], np.uint64)
    (where,) = np.flatnonzero(header == old)
    header[where] = new
