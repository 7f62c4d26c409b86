"""trees: every kind of container is taken apart and put together again, and its places have names."""

import gc
import weakref
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import InitVar, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest

from untorn import trees
from untorn.errors import UnsupportedTypeError
from untorn.trees import BATCH, LEAF, Spec

Loose = namedtuple("Loose", ["a", "b"])  # the kind without types


class Pair(NamedTuple):
    left: Any
    right: Any


class Checked(Pair):
    def __new__(cls, left: Any, right: Any) -> "Checked":
        raise AssertionError("no code of a class runs")


@dataclass
class Layer:
    w: Any
    b: Any = None


@dataclass(frozen=True, slots=True)
class Frozen:
    w: Any
    twice: Any = field(init=False)
    by: InitVar[int] = 2

    def __post_init__(self, by: int) -> None:
        object.__setattr__(self, "twice", by * self.w)


class Mapping(dict):
    pass


class Sequence(list):
    pass


class Row(tuple):
    pass


TREES = {
    "leaf": (1, ["(the value itself)"]),
    "dict": ({"b": 1, "a": {"c": 2}}, ["b", "a/c"]),
    "dict of other keys": ({1: 0, True.__class__: 1, (2, "x"): 2}, ["1", "<class 'bool'>", "(2, 'x')"]),
    "odict": (OrderedDict(b=1, a=OrderedDict(c=2)), ["b", "a/c"]),
    "list": ([1, [2, 3], []], ["0", "1/0", "1/1"]),
    "tuple": ((1, (2,), ()), ["0", "1/0"]),
    "namedtuple": (Pair(1, Pair(2, 3)), ["left", "right/left", "right/right"]),
    "untyped namedtuple": (Loose(1, [2]), ["a", "b/0"]),
    "namedtuple with code": (tuple.__new__(Checked, (1, 2)), ["left", "right"]),
    "dataclass": (Layer([1], Layer(2)), ["w/0", "b/w", "b/b"]),
    "frozen dataclass": (Frozen(3, by=5), ["w", "twice"]),
    "empty dict": ({}, []),
    "empty odict": (OrderedDict(), []),
    "empty in a dict": ({"a": {}, "b": [(), OrderedDict()], "c": 1}, ["c"]),
    "None and a str": ([None, "x"], ["0", "1"]),
}


@pytest.fixture(params=TREES, ids=str)
def case(request):
    return TREES[request.param]


def test_unflatten_is_the_inverse_of_flatten(case):
    tree, _ = case
    spec, leaves = trees.flatten(tree)
    again = trees.unflatten(spec, leaves)
    assert again == tree and type(again) is type(tree)
    assert trees.flatten(again)[0] == spec
    assert hash(spec) == hash(trees.flatten(again)[0])


def test_a_path_for_each_leaf(case):
    tree, paths = case
    spec, leaves = trees.flatten(tree)
    assert list(map(trees.path_of, trees.paths(spec))) == paths
    assert len(leaves) == len(paths)


def test_map_is_flatten_and_unflatten(case):
    tree, _ = case
    spec, leaves = trees.flatten(tree)
    assert trees.map(repr, tree, kinds=trees.CONTAINERS) == trees.unflatten(spec, list(map(repr, leaves)))


def test_leaves_are_not_copied():
    w = np.zeros(3)
    spec, leaves = trees.flatten({"w": (w,)})
    assert leaves[0] is w
    assert trees.unflatten(spec, leaves)["w"][0] is w


def test_leaves_are_let_go_at_once():
    gc.disable()
    try:
        array = np.zeros(3)
        trees.flatten({"a": [array]})
        alive = weakref.ref(array)
        del array
        assert alive() is None
    finally:
        gc.enable()


def test_kinds_and_types_of_keys_are_structure():
    specs = [
        trees.flatten(tree)[0]
        for tree in [[1], (1,), {0: 1}, {False: 1}, {0.0: 1}, {"0": 1}, OrderedDict({0: 1}), 1, Pair(1, 2), Loose(1, 2)]
    ]
    assert len(set(specs)) == len(specs)


@pytest.mark.parametrize(
    ("tree", "same"),
    [
        (Mapping(a=1), {"a": 1}),
        (defaultdict(int, a=1), {"a": 1}),
        (Sequence([1]), [1]),
        (Row((1,)), (1,)),
    ],
    ids=["dict", "defaultdict", "list", "tuple"],
)
def test_a_subclass_is_put_together_as_its_base(tree, same):
    again = trees.unflatten(*trees.flatten(tree))
    assert again == same and type(again) is type(same)
    assert type(trees.map(lambda leaf: leaf, tree)) is type(same)


def test_batches_are_opened_down_to_dataclasses():
    layer = Layer([1])
    assert trees.flatten([layer, {"x": (2,)}], kinds=BATCH)[1] == [layer, 2]
    assert trees.map(id, [layer]) == [id(layer)]
    assert type(trees.map(abs, OrderedDict(a=-1))) is dict
    assert trees.map(len, {"x": [1, 2]}, kinds=frozenset({"dict"})) == {"x": 2}


def test_classes_are_no_containers():
    assert trees.flatten([Layer, Pair, dict])[1] == [Layer, Pair, dict]


def test_too_few_and_too_many_leaves():
    spec, _ = trees.flatten([1, {"a": 2}])
    for leaves in ([1], [1, 2, 3]):
        with pytest.raises(ValueError, match=f"a tree of 2 leaves: found {len(leaves)}"):
            trees.unflatten(spec, leaves)


def test_a_cycle_and_a_deep_tree_are_refused():
    cycle: list[Any] = [1]
    cycle.append({"a": cycle})
    with pytest.raises(UnsupportedTypeError, match=r"1/a: the tree contains itself"):
        trees.flatten(cycle)
    deep: Any = 1
    for _ in range(trees.MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(UnsupportedTypeError, match="nested more than 200 deep"):
        trees.flatten(deep)
    assert trees.flatten(deep[0])[1] == [1]


def test_map_takes_several_trees_of_one_structure():
    assert trees.map(lambda *parts: sum(parts), {"x": [1, 2]}, {"x": [10, 20]}, {"x": [0, 1]}) == {"x": [11, 23]}


def test_map_with_path_says_where_as_python_writes_it():
    seen: list[tuple[str, Any]] = []
    tree = {"x": [1, Pair(2, None)], 3: Layer(4)}
    same = trees.map_with_path(
        lambda path, leaf: seen.append((path, leaf)) or leaf, tree, at="data", kinds=trees.CONTAINERS
    )
    assert same == tree
    assert seen == [
        ("data['x'][0]", 1),
        ("data['x'][1][0]", 2),
        ("data['x'][1][1]", None),
        ("data[3].w", 4),
        ("data[3].b", None),
    ]


def test_take_decides_what_a_leaf_is_and_what_is_opened():
    def take(value, path, leaves):
        if isinstance(value, complex):
            return trees.Node("complex", None, [value.real, value.imag], ["real", "imag"])
        if isinstance(value, float):
            leaves.append(value)
            return Spec("float", path)
        return trees.opened(value)

    spec, leaves = trees.flatten({"z": [1 + 2j]}, take, at=("at",))
    assert leaves == [1, 2]
    assert spec.children[0].children[0] == Spec(
        "complex", None, (Spec("float", ("at", "z", "0", "real")), Spec("float", ("at", "z", "0", "imag")))
    )
    assert [path for path, _ in trees.leaf_specs(spec)] == [("z", "0")]  # other kinds belong to their creator


def test_mismatch_finds_the_first_place_that_differs():
    def mismatch(one, other):
        return trees.mismatch(trees.flatten(one)[0], trees.flatten(other)[0], lambda *_: True)

    tree = {"a": [1, 2], "b": Pair(1, Layer(2))}
    assert mismatch(tree, tree) is None
    assert mismatch(tree, dict(reversed(tree.items()))) is None
    path, expected, found = mismatch(tree, tree | {"b": Pair(1, {"w": 2, "b": 3})})
    assert (path, expected.kind, found.kind) == (("b", "right"), "dataclass", "dict")
    assert mismatch(tree, tree | {"a": [1]})[0] == ("a",)
    assert mismatch(tree, tree | {"c": 1})[0] == ()
    spec = trees.flatten(tree)[0]
    assert trees.mismatch(spec, spec, lambda *_: False) == (("a", "0"), LEAF, LEAF)


@pytest.mark.parametrize("other", [{"a": 1}, [1, 2], 1, {"a": [1, 2], "b": (1, 2), "c": 3}])
def test_a_collector_takes_trees_of_one_structure(other):
    def leaf(_):
        return lambda value, leaves: leaves.append(value) or True

    tree = {"a": [1, 2], "b": Pair(3, Layer(4, OrderedDict(x=5)))}
    collect = trees.collector(trees.flatten(tree)[0], leaf)
    leaves: list[Any] = []
    assert collect({"b": tree["b"], "a": Sequence(tree["a"])}, leaves)
    assert leaves == [1, 2, 3, 4, 5]
    assert not collect(other, [])
