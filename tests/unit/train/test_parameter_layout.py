"""The parameter layout: the places of parameters and state, and the ranges of an update."""

import struct

import numpy as np
import pytest

from networks import Layer
from untorn import _core
from untorn.train.models.checks import check_parameters
from untorn.train.run.parameter_layout import ParameterLayout


def ranges_of(plan):
    """Return (slot offset, gradient offset, count, dtype) of each update task that makes a step."""
    return [task[:4] for task in struct.iter_unpack("<QQQQQQ", plan.ranges())][:-1]


def plan_of(params, state=True):
    return ParameterLayout.of(params, {"momentum": params} if state else None)


TREES = {
    "one": {"w": np.zeros(1)},
    "scalar": {"w": np.zeros(())},
    "two dtypes": {"a": np.zeros(3, np.float32), "b": np.zeros(5), "c": np.zeros(7, np.float32)},
    "empty among others": [np.zeros((0, 3)), np.zeros(4), np.zeros(0, np.float32)],
    "nested": {
        "head": [Layer(np.zeros((3, 5)), np.zeros(5)), Layer(np.zeros((5, 1)), np.zeros(1))],
        "t": (np.zeros(2),),
    },
    "fortran": {"w": np.asfortranarray(np.zeros((30, 20), np.float32))},
    "large": {"w": np.zeros((1000, 1001), np.float32), "b": np.zeros(1001, np.float32), "k": np.zeros(70_001)},
}


@pytest.mark.parametrize("params", TREES.values(), ids=TREES)
@pytest.mark.parametrize("state", [False, True])
def test_every_parameter_is_in_exactly_one_range_of_its_dtype(params, state):
    plan = plan_of(params, state)
    covered = np.zeros(plan.nbytes, np.uint8)
    dtypes = np.full(plan.nbytes, 255, np.uint8)
    for slot_offset, gradient_offset, count, dtype in ranges_of(plan):
        assert slot_offset == plan.start + gradient_offset
        nbytes = count * (4, 8)[dtype]
        covered[gradient_offset : gradient_offset + nbytes] += 1
        dtypes[gradient_offset : gradient_offset + nbytes] = dtype
    assert covered.max() == 1
    for offset, dtype, shape, _ in plan.arrays:
        nbytes = dtype.itemsize * int(np.prod(shape))
        assert (covered[offset : offset + nbytes] == 1).all()
        assert (dtypes[offset : offset + nbytes] == {"float32": 0, "float64": 1}[dtype.name]).all()


@pytest.mark.parametrize("params", TREES.values(), ids=TREES)
def test_ranges_start_at_cache_lines(params):
    """No two workers write to the same cache line."""
    plan = plan_of(params)
    assert plan.start % 64 == 0
    assert all(gradient_offset % 64 == 0 for _, gradient_offset, _, _ in ranges_of(plan))


@pytest.mark.parametrize("params", TREES.values(), ids=TREES)
def test_state_lies_behind_the_parameters(params):
    plan = plan_of(params)
    assert plan.state_stride % 64 == 0
    last = max(offset + dtype.itemsize * int(np.prod(shape)) for offset, dtype, shape, _ in plan.arrays)
    assert plan.state_stride >= last
    assert plan_of(params, state=False).state_stride == 0
    assert plan_of(params, state=False).arrays == plan.arrays


def test_a_large_network_is_cut_and_a_small_one_is_not():
    assert 8 <= len(ranges_of(plan_of(TREES["large"]))) <= 32
    assert len(ranges_of(plan_of(TREES["nested"]))) == 1


@pytest.mark.parametrize(("state", "kind"), [({}, _core.MERGE_ABSENT), ({"skipped": 1}, _core.MERGE_SKIPPED)])
def test_the_last_range_is_that_of_absent_gradients(state, kind):
    params = TREES["two dtypes"]
    state = {"momentum": params} | {name: np.zeros(3, np.int64) for name in state}
    plan = ParameterLayout.of(params, state)
    *_, (slot_offset, gradient_offset, count, kinds, _, _) = struct.iter_unpack("<QQQQQQ", plan.ranges())
    assert (gradient_offset, count, kinds) == (plan.absent_at, 3, kind << 8)
    assert (slot_offset > plan.start + plan.state_stride + plan.absent_at - 64) == (kind == _core.MERGE_SKIPPED)
    assert plan.absent_at >= 64 * 3 and plan.nbytes == plan.absent_at + 64
    assert list(struct.unpack("<QQQ", plan.leaves())) == [offset for offset, *_ in plan.arrays]


def test_the_number_of_parameters_is_counted():
    assert plan_of(TREES["nested"]).parameters == 15 + 5 + 5 + 1 + 2
    assert plan_of(TREES["scalar"]).parameters == 1


@pytest.mark.parametrize("params", TREES.values(), ids=TREES)
def test_they_are_parameters(params):
    check_parameters(params)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (None, TypeError, "params: (the value itself): expected an array of float32 or float64, found None"),
        (
            {"w": np.zeros(3, int)},
            TypeError,
            "params: w: expected an array of float32 or float64, found an array of int",
        ),
        ({"w": np.zeros(3, np.float16)}, TypeError, "found an array of float16"),
        ({"w": np.zeros(3, ">f8")}, TypeError, "found an array of >f8"),
        ({"w": np.zeros(3, complex)}, TypeError, "found an array of complex128"),
        ({"net": [np.zeros(3), 0.5]}, TypeError, "params: net/1: expected an array of float32 or float64"),
        ({"w": np.zeros(3), "name": "mlp"}, TypeError, "params: name: expected an array"),
        ({"w": np.array([None])}, TypeError, "w"),
        ({}, ValueError, "params: there is nothing to train"),
        ([], ValueError, "params: there is nothing to train"),
        ({"w": np.zeros((0, 3))}, ValueError, "params: there is nothing to train"),
    ],
)
def test_what_is_no_parameter_is_named(params, error, message):
    with pytest.raises(error) as caught:
        check_parameters(params)
    assert message in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 1), (64, 3), (65, 3), (20_000, 100), (3, 50_000)])
def test_tables_are_cut_at_words_of_their_sets(shape):
    params = {"a": np.zeros(3), "t": np.zeros(shape, np.float32), "u": np.zeros(shape, np.float32), "b": np.zeros(2)}
    plan = ParameterLayout.of(params, None, tables=("t", "u"), by_rows=(True,))
    row = shape[1]
    tasks = list(struct.iter_unpack("<QQQQQQ", plan.ranges()))
    by_rows = [task for task in tasks if task[3] >> 8 == _core.MERGE_ROWS]
    assert next(task for task in tasks if task not in by_rows)[2] == 3
    for index in (1, 2):
        offset, table = plan.arrays[index][0], plan.tables[index]
        first = 0
        for slot_offset, grad_offset, count, _, elements, set_offset in by_rows:
            if not offset <= grad_offset < offset + 4 * row * shape[0]:
                continue
            assert (slot_offset, elements) == (plan.start + grad_offset, row)
            assert grad_offset == offset + 4 * row * first
            assert first % 64 == 0
            assert set_offset == table.set_at + first // 8
            first += count // row
        assert first == shape[0]
    assert sum(task[2] for task in by_rows) == 2 * row * shape[0]
    assert plan.sets_at + plan.sets_nbytes == plan.nbytes
