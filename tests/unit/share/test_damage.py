"""Documents and tables that no publisher writes: each is a FormatError that names the place, and nothing outside the
version is read. tests/fuzz looks for more of them; its findings are here by name."""

import json
import os
import struct
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest

from helpers import start
from untorn import FrozenDict, publish, subscribe
from untorn.errors import FormatError, UnsupportedTypeError
from untorn.share.decoder import Decoder
from untorn.share.described import read_dtype
from untorn.share.specs import flatten
from untorn.trees import MAX_DEPTH

NBYTES = 4096
LARGEST = 2**63 - 1


@dataclass
class Failed(Exception):
    code: int


@dataclass
class Table(OrderedDict):
    code: int


@dataclass
class Slotted:
    __slots__ = ("other",)
    code: int


def read(node, **options):
    return Decoder(json.dumps({"value": node}).encode(), NBYTES, payload=0, **options).value(bytes(NBYTES))


def refused(node, **options):
    with pytest.raises(FormatError) as raised:
        read(node, **options)
    return str(raised.value)


@pytest.mark.parametrize(
    "node",
    [
        ["namedtuple", ["os", "stat_result", []], []],
        ["namedtuple", ["os", "times_result", []], []],
        ["namedtuple", ["sys", "flags", []], []],
        ["namedtuple", ["builtins", "tuple", []], []],
        ["namedtuple", [True, "x", []], []],
        ["namedtuple", ["os", 7, []], []],
        ["namedtuple", "os", []],
        ["namedtuple", ["os", "stat_result"], []],
        ["dataclass", ["os", "x", [1]], [["none", 0]]],
        ["dataclass", ["os", "x", {"a": 1}], [["none", 0]]],
        ["dataclass", [__name__, "Failed", ["code"]], [["int", 0]]],
        ["dataclass", [__name__, "Table", ["code"]], [["int", 0]]],
        ["dataclass", [__name__, "Slotted", ["code"]], [["int", 0]]],
    ],
    ids=json.dumps,
)
def test_a_class_that_cannot_be_made(node):
    refused(node)


@pytest.mark.parametrize(
    ("node", "place"),
    [
        (["adapter", ["pyarrow.Table", [], [True]], [["frozendict", [], [["pickle", "x", []]]]]], "b/0"),
        (["adapter", [True, [], []], []], "b/0"),
        (["adapter", [["pyarrow"], [], []], []], "b/0"),
        (["adapter", ["numpy.ma.MaskedArray", [False], {"data": 1}], [["int", 0]]], "b/0"),
        (["adapter", ["numpy.ma.MaskedArray", [False], [["data"]]], [["int", 0]]], "b/0"),
        (["adapter", ["numpy.ma.MaskedArray", [False], ["data", "mask"]], [["int", 0]]], "b/0"),
        (["adapter", ["numpy.ma.MaskedArray", 7, ["data"]], [["array", 0, "<f8", [2], None]]], "b/0"),
        (["adapter", ["numpy.ma.MaskedArray", [False], []], []], "b/0"),
        (["adapter", ["numpy.recarray", [], ["data"]], [["int", 0]]], "b/0"),
        (["adapter", ["numpy.matrix", [], ["data"]], [["list", 0, []]]], "b/0"),
        (["frozendict", [1, 2], [["none", 0], ["none", 0]]], "b/0"),
        (["frozendict", [[]], [["none", 0]]], "b/0"),
        (["frozendict", 5, []], "b/0"),
        (["dict", "ab", [["none", 0], ["none", 0]]], "b/0"),
        (["dict", [["bytes", 5]], [["none", 0]]], "b/0"),
        (["dict", [["tuple", "ab"]], [["none", 0]]], "b/0"),
        (["dict", [["tuple", [["tuple", []]]]], [["none", 0]]], "b/0"),
        (["dict", [["int", True]], [["none", 0]]], "b/0"),
        (["dict", [["numpy", ["<i8", "00"]]], [["none", 0]]], "b/0"),
        (["dict", [["numpy", ["<U1", "61000000"]]], [["none", 0]]], "b/0"),
        (["dict", [["numpy", [5, ""]]], [["none", 0]]], "b/0"),
        (["dict", [["numpy", "ab"]], [["none", 0]]], "b/0"),
        (["dict", [["python.set", [["any"], {"items": "a"}]]], [["none", 0]]], "b/0"),
        (["dict", [["pickle", "x"]], [["none", 0]]], "b/0"),
        (["dict", [["python.date", [[], {"day": ["int", "0"]}]]], [["none", 0]]], "b/0"),
        (["dict", [["python.date", [[], [["day"]]]]], [["none", 0]]], "b/0"),
        (["dict", [["python.date", [[], {}]]], [["none", 0]]], "b/0"),
        (["dict", [["python.Decimal", [[], {"text": "sNaN"}]]], [["none", 0]]], "b/0"),
        (["dict", [["python.Decimal", [[], {"text": ["tuple", []]}]]], [["none", 0]]], "b/0"),
        (["dict", [["python.UUID", [[], {"data": ["bytes", "00"]}]]], [["none", 0]]], "b/0"),
        (["dict", [["python.Enum", [["os", "system"], {"member": "x"}]]], [["none", 0]]], "b/0"),
        (["dict", [["python.Enum", [["json", "JSONDecoder"], {"bits": ["int", "1"]}]]], [["none", 0]]], "b/0"),
        (["list", 1, {"a": 1}], "b/0"),
        (["list", 1, "x"], "b/0"),
        (["list", 1], "b/0"),
        ("list", "b/0"),
        ({"a": 1, "b": 2}, "b/0"),
        (None, "b/0"),
        ([["list"], 0, []], "b/0"),
        (["tuple", 2, [["int", 0], ["int", True]]], "b/0/1"),
        (["tuple", 2, [["int", 0], ["int", "8"]]], "b/0/1"),
        (["tuple", 2, [["int", 0], ["int", 8.0]]], "b/0/1"),
        (["tuple", 2, [["int", 0], ["int", float("nan")]]], "b/0/1"),
        (["tuple", 2, [["int", 0], ["int", 2**70]]], "b/0/1"),
        (["str", 0], "b/0"),
        (["str", 0, True], "b/0"),
        (["str", 0, 2.5], "b/0"),
        (["bytes", 0, 2**64 + 1], "b/0"),
        (["numpy", 0], "b/0"),
        (["array", 0, "<f8"], "b/0"),
        (["array", 0, "<f8", 5, None], "b/0"),
        (["array", 0, "<f8", "12", None], "b/0"),
        (["array", 0, "<f8", [True], None], "b/0"),
        (["array", 0, "<f8", [1.0], None], "b/0"),
        (["array", 0, "<f8", [None], None], "b/0"),
        (["array", 0, "<f8", [2], False], "b/0"),
        (["array", 0, "<f8", [2], []], "b/0"),
    ],
    ids=repr,
)
def test_a_document_of_another_form_names_the_place(node, place):
    assert f"{place}: " in refused(["dict", ["b"], [["list", 1, [node]]]])


@pytest.mark.parametrize(
    ("dtype", "shape", "strides"),
    [
        ("|u1", [LARGEST], None),
        ("<f8", [2**61], None),
        ("<f8", [2**61 + 1], None),
        ("<f8", [2**32, 2**32], None),
        ("<f8", [0, LARGEST, LARGEST], None),
        ("|V0", [2**40, 2**40], None),
        ("|u1", [4097], None),
        ("|u1", [2**40], [0]),
        ("<f8", [2, 2], [8, 8]),
        ("<f8", [3], [16]),
        ("<f8", [2], [-8]),
        ("<f8", [0], [8]),
        ("<f8", [2, 2], [LARGEST, 8]),
        ("<f8", [1] * 65, None),
        ("<f8", [1] * 300, None),
        ("|V2147483647", [1], None),
    ],
)
def test_an_array_that_its_version_does_not_have(dtype, shape, strides):
    refused(["array", 0, dtype, shape, strides])
    refused(["array", 64, dtype, shape, strides])


@pytest.mark.parametrize(
    "described",
    [
        *("O", "|O", "T", "|T16", "f4,f4", "(2,3)f4", "i4, (2,2)f8", "float8_e4m3fn", "", "f3", "<i16", "V-1", "S"),
        *("datetime64[ns]", "M8[foo]", "U999999999", "V99999999999999999999", "object", "a,b"),
        *("U1073741824", "V2147483648"),
        *(5, None, True, 1.5, {"names": ["a"]}, [5], ["<f8"], ["<f8", [2]], [["<f8", [2]]], [[["a", "<f8"]], [2]]),
        *([["a"]], [["a", "O"]], [["a", "<f8"], ["a", "<f8"]], [["a", "<f8", 5]], [["a", "<f8", [-1]]], [[1, "<f8"]]),
        *([["a", "<f8", [2**31]]], [["a", "<f8", [2], [3]]], [[["t", "a", "b"], "<f8"]], [["a", {"b": 1}]]),
    ],
    ids=repr,
)
def test_a_dtype_that_no_publisher_writes(described):
    with pytest.raises((TypeError, ValueError, AttributeError)):
        read_dtype(described)
    refused(["array", 0, described, [1], None])
    refused(["numpy", 0, described])
    documents = {"format": 1, "entries": 0, "seed": "0", "dtypes": [described], "schemas": []}
    with pytest.raises(FormatError):
        FrozenDict.of_parts(FrozenDict().parts() | {"documents": json.dumps(documents).encode()})


def test_leaves_that_share_bytes():
    """If they could, a schema of a few kilobytes could ask for any amount of memory."""
    text = ["str", 0, NBYTES]
    assert read(["list", 1, [text]]) == ["\0" * NBYTES]
    assert "not behind the leaf before it" in refused(["list", 2, [text, text]])
    refused(["tuple", 2, [["array", 64, "<f8", [1], None], ["int", 0]]])


def nested(depth, leaf):
    for _ in range(depth):
        leaf = ["list", 1, [leaf]]
    return leaf


def test_nesting_ends_where_a_publisher_ends_it():
    read(nested(MAX_DEPTH, ["int", 0]))
    assert "nested more than 200 deep" in refused(nested(MAX_DEPTH + 1, ["int", 0]))
    refused(["adapter", ["numpy.matrix", [], ["data"]], [nested(MAX_DEPTH, ["int", 0])]])
    fields = "<f8"
    for _ in range(MAX_DEPTH + 1):
        fields = [["a", fields]]
    refused(["array", 0, fields, [1], None])


def test_what_a_trainer_stores_beside_the_value_is_read_as_carefully():
    document = {"value": ["none", 0], "extra": ["str", 0, 4]}
    decoder = Decoder(json.dumps(document).encode(), NBYTES, payload=0)
    with pytest.raises(FormatError, match="cannot be read"):
        decoder.extra(b"\xff" * NBYTES)


def test_looking_for_a_class_runs_no_code_of_its_module(tmp_path, monkeypatch):
    (tmp_path / "untorn_lazy.py").write_text("def __getattr__(name):\n    raise SystemExit(name)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import untorn_lazy  # noqa: F401

    refused(["dataclass", ["untorn_lazy", "Thing", []], []])


def test_classes_that_only_c_makes_are_not_published():
    for value in (Failed(1), Table(1)):
        with pytest.raises(UnsupportedTypeError, match="a base that is not written in Python"):
            flatten({"a": value})


def test_an_array_without_fields_is_read():
    for value in (np.zeros(3, np.dtype([])), np.zeros((2, 3), "V0")):
        with publish({"a": value, "f": FrozenDict({"a": value})}) as publisher:
            found = publisher.subscriber().snapshot().value
            assert found["a"].dtype == found["f"]["a"].dtype == value.dtype
            assert found["a"].shape == found["f"]["a"].shape == value.shape


# -- FrozenDict


def with_axes(nbytes, *axes):
    """A FrozenDict whose array "a" says that it has these bytes and axes."""
    source = FrozenDict({"first": np.zeros(64, "u1"), "a": np.arange(100, dtype="u1").reshape((100,) + (1,) * 4)})
    parts = {name: bytearray(memoryview(part)) for name, part in source.parts().items()}
    at = parts["entries"].find(struct.pack("<6Q", 100, 100, 1, 1, 1, 1))
    assert at > 0
    struct.pack_into("<6Q", parts["entries"], at, nbytes, *axes, *[1] * (5 - len(axes)))
    return {name: bytes(part) for name, part in parts.items()}


SHAPES = [
    (100, LARGEST),
    (100, LARGEST - 1),
    (100, 2**63),
    (100, 2**64 - 1),
    (100, 2**64 - 100),
    (100, 101),
    (100, 99),
    (0, 100),
    (104, 100),
    (100, 2**32, 2**32),
    (100, 2**63, 2),
    (0, 0, LARGEST, LARGEST),
    (0, 2**32, 2**32, 2**32, 2**32, 0),
    (2**63, 100),
]


@pytest.mark.parametrize("axes", SHAPES, ids=repr)
def test_an_array_in_a_frozen_dict_has_the_bytes_that_its_shape_says(axes):
    damaged = FrozenDict.of_parts(with_axes(*axes))
    assert len(damaged["first"]) == 64
    for look in (damaged.__getitem__, damaged.get):
        with pytest.raises(FormatError, match="is damaged"):
            look("a")
    with pytest.raises(FormatError, match="is damaged"):
        list(damaged.values())


def test_a_reader_of_a_damaged_file_lives(name):
    with publish({"f": FrozenDict({"a": np.arange(100, dtype="u1")})}, name=name) as publisher:
        file = f"/dev/shm/untorn-{os.geteuid()}/{name}.data"
        with open(file, "rb+") as data:
            whole = data.read()
            data.seek(whole.find(struct.pack("<QQ", 100, 100)) + 8)
            data.write(struct.pack("<Q", LARGEST))
        with start(_look, name) as child:
            assert child.get() == "FormatError"
            assert child.join() == 0
        publisher.unlink()


def _look(pipe, name):
    try:
        found = subscribe(name).snapshot().value["f"]["a"]
        pipe.put(int(found[1 << 40]))
    except FormatError as error:
        pipe.put(type(error).__name__)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("entries", "1"),
        ("entries", 1.0),
        ("entries", True),
        ("entries", 2**63),
        ("seed", 5),
        ("seed", "-1"),
        ("dtypes", "f"),
        ("dtypes", {"<f8": 1}),
        ("schemas", "x"),
        ("schemas", [5]),
        ("format", [1]),
        ("format", None),
    ],
)
def test_documents_of_another_form(field, value):
    documents = {"format": 1, "entries": 1, "seed": "0", "dtypes": [], "schemas": []} | {field: value}
    with pytest.raises(FormatError):
        FrozenDict.of_parts(FrozenDict({"a": 1}).parts() | {"documents": json.dumps(documents).encode()})


# -- values of other libraries


def adapted(name, meta, **arrays):
    """The node of such a value, over arrays of zeros."""
    nodes, at = [], 0
    for dtype, *shape in arrays.values():
        nodes.append(["array", at, dtype, shape, None])
        at += 64
    return ["adapter", [name, meta, list(arrays)], nodes]


def csr(shape, *, data, indices, indptr, kind="csr_array"):
    return adapted(f"scipy.sparse.{kind}", [shape, [True, True]], data=data, indices=indices, indptr=indptr)


def torch_sparse(layout, shape, *more, **parts):
    """The tensors are adapter nodes themselves."""
    nodes = []
    for at, (dtype, *length) in enumerate(parts.values()):
        name = {"<i8": "int64", "<i4": "int32", "<f4": "float32"}[dtype]
        strided = ["adapter", ["torch.Tensor", ["strided", False, name], ["data"]]]
        nodes.append([*strided, [["array", at * 64, dtype, length, None]]])
    return ["adapter", ["torch.Tensor", [layout, False, shape, *more], list(parts)], nodes]


SCIPY = {
    "pointers": csr([2, 2], data=("<f8", 2), indices=("<i4", 2), indptr=("<i4", 2)),
    "rows": csr([2**40, 2], data=("<f8", 2), indices=("<i4", 2), indptr=("<i4", 3)),
    "columns": csr([2, -1], data=("<f8", 2), indices=("<i4", 2), indptr=("<i4", 3)),
    "data": csr([2, 2], data=("<f8", 1), indices=("<i4", 2), indptr=("<i4", 3)),
    "floats": csr([2, 2], data=("<f8", 2), indices=("<f8", 2), indptr=("<i4", 3)),
    "order": csr([2, 2], data=("<f8", 2), indices=(">i4", 2), indptr=("<i4", 3)),
    "axes": csr([2, 2], data=("<f8", 2), indices=("<i4", 2, 1), indptr=("<i4", 3)),
    "block": csr([2, 2], data=("<f8", 2, 0, 2), indices=("<i4", 2), indptr=("<i4", 3), kind="bsr_array"),
    "blocks": csr([3, 2], data=("<f8", 1, 2, 2), indices=("<i4", 1), indptr=("<i4", 2), kind="bsr_array"),
    "coordinates": adapted("scipy.sparse.coo_array", [[2, 2], True], data=("<f8", 2), coord0=("<i4", 2)),
    "offsets": adapted("scipy.sparse.dia_array", [[2, 2]], data=("<f8", 2, 2), offsets=("<f8", 2)),
}
TORCH = {
    "values": torch_sparse("sparse_coo", [3, 3], True, indices=("<i8", 2, 4), values=("<f4", 5)),
    "axes": torch_sparse("sparse_coo", [3], True, indices=("<i8", 2, 4), values=("<f4", 4)),
    "dense": torch_sparse("sparse_coo", [3, 3, 7], True, indices=("<i8", 2, 4), values=("<f4", 4, 2)),
    "floats": torch_sparse("sparse_coo", [3, 3], True, indices=("<f4", 2, 4), values=("<f4", 4)),
    "pointers": torch_sparse("sparse_csr", [3, 3], crow_indices=("<i8", 3), col_indices=("<i8", 0), values=("<f4", 0)),
    "last": torch_sparse("sparse_csr", [3, 3], crow_indices=("<i8", 4), col_indices=("<i8", 5), values=("<f4", 5)),
    "columns": torch_sparse("sparse_csc", [3, 2], ccol_indices=("<i8", 4), row_indices=("<i8", 0), values=("<f4", 0)),
    "kinds": torch_sparse("sparse_csr", [3, 3], crow_indices=("<i8", 4), col_indices=("<i4", 0), values=("<f4", 0)),
    "blocks": torch_sparse(
        "sparse_bsr", [3, 3], crow_indices=("<i8", 2), col_indices=("<i8", 0), values=("<f4", 0, 2, 2)
    ),
    "empty blocks": torch_sparse(
        "sparse_bsr", [4, 4], crow_indices=("<i8", 3), col_indices=("<i8", 0), values=("<f4", 0, 0, 2)
    ),
}


def multi_index(*lengths, levels=1, dtype="|i1"):
    codes = [["array", at * 64, dtype, [length], None] for at, length in enumerate(lengths)]
    names = [["none", 0]] * len(lengths)
    nodes = [["list", levels, [["none", 0]] * levels], ["list", len(codes), codes], ["list", len(names), names]]
    return ["adapter", ["pandas.MultiIndex", [None], ["levels", "codes", "names"]], nodes]


PANDAS = {
    "codes": ["adapter", ["pandas.Categorical", [False], ["codes", "categories"]],
              [["array", 0, "<f8", [2], None], ["list", 0, []]]],
    "axes": ["adapter", ["pandas.Categorical", [False], ["codes", "categories"]],
             [["array", 0, "|i1", [2, 2], None], ["list", 0, []]]],
    "levels": multi_index(2, 2, levels=1),
    "lengths": multi_index(2, 3, levels=2),
    "floats": multi_index(2, levels=1, dtype="<f4"),
    "objects": ["adapter", ["pandas.Index", [None], ["values", "name"]],
                [["tuple", 3, [["bytes", 0, 2], ["bytes", 8, 16], ["bytes", 24, 5]]], ["none", 0]]],
}  # fmt: skip


@pytest.mark.parametrize("what", SCIPY)
def test_a_sparse_matrix_whose_parts_do_not_fit(what):
    pytest.importorskip("scipy")
    assert read(csr([2, 2], data=("<f8", 2), indices=("<i4", 2), indptr=("<i4", 3))).shape == (2, 2)
    assert "(the value itself): " in refused(SCIPY[what])


@pytest.mark.parametrize("what", TORCH)
def test_a_sparse_tensor_whose_parts_do_not_fit(what):
    pytest.importorskip("torch")
    whole = read(torch_sparse("sparse_coo", [3, 3], True, indices=("<i8", 2, 4), values=("<f4", 4)))
    assert whole.to_dense().shape == (3, 3)
    assert "(the value itself): a torch.Tensor cannot be put together" in refused(TORCH[what])


def test_values_that_are_written_to_share_one_private_copy():
    """Otherwise n of them would cost n times the memory of all, where there is no mapping of a channel."""
    torch = pytest.importorskip("torch")
    tensors = OrderedDict((i, torch.arange(1000.0) + i) for i in range(8))  # a value of one piece, to a FrozenDict
    found = list(FrozenDict({"a": tensors})["a"].values())
    assert [tensor[0].item() for tensor in found] == list(range(8))
    assert max(tensor.data_ptr() for tensor in found) - min(tensor.data_ptr() for tensor in found) == 7 * 4032
    found[0][1] = 7
    assert FrozenDict({"a": tensors})["a"][0][1] == 1


@pytest.mark.parametrize("what", PANDAS)
def test_a_table_whose_parts_do_not_fit(what):
    pytest.importorskip("pandas")
    assert "cannot be put together" in refused(PANDAS[what])


def test_texts_of_a_table_are_as_long_as_its_characters():
    """Lengths that go up and down again would let a few bytes ask for any amount of text."""
    pytest.importorskip("pandas")
    parts = ["tuple", 3, [["bytes", 0, 4], ["bytes", 64, 32], ["bytes", 128, 1000]]]
    document = {"value": ["adapter", ["pandas.Index", [None], ["values", "name"]], [parts, ["none", 0]]]}
    memory = bytearray(b"a" * NBYTES)
    memory[0:4] = bytes(4)
    memory[64:96] = struct.pack("<4q", 1000, -1000, 1000, 0)
    decoder = Decoder(json.dumps(document).encode(), NBYTES, payload=0)
    with pytest.raises(FormatError, match="characters"):
        decoder.value(bytes(memory))
    memory[64:96] = struct.pack("<4q", 1000, 0, 0, 0)
    assert list(decoder.value(bytes(memory))) == ["a" * 1000, "", "", ""]
