"""Make the corpus: small valid inputs of every target, and inputs that once found a bug.

    python tests/fuzz/corpus.py        writes tests/fuzz/corpus/TARGET/NAME

The files are checked in, and a test compares them. A finding is a line in FOUND: the bug, and the bytes that showed it.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import targets
from targets import base_table

from untorn import FrozenDict
from untorn.adapter_registry import Parts
from untorn.share.frozen_dict import REMOVED
from untorn.share.layout import pack
from untorn.share.table_overlay import Overlay
from untorn.train.checkpoints import checkpoint

HERE = Path(__file__).parent / "corpus"
LARGEST = 2**63 - 1


def values() -> dict[str, Any]:
    """Values of every kind that needs no other library."""
    return {
        "numbers": {"i": 7, "f": 0.5, "c": 1j, "b": True, "n": None, "big": 2**70, "s": np.float32(1)},
        "texts": ["net", b"raw", "\ud800", ""],
        "keys": {1: 1, 1.5: 2, b"k": 3, None: 4, False: 5, ("a", 1): 6},
        "order": OrderedDict(a=1, b=(2, [3])),
        "arrays": {"c": np.arange(6, dtype="f4").reshape(2, 3), "f": np.asfortranarray(np.ones((2, 3)))},
        "empty": [np.zeros((0, 2)), np.zeros(()), np.zeros(3, np.dtype([]))],
        "structured": np.zeros(2, [("a", "i4"), ("b", "f8", (2,)), (("title", "t"), "S3")]),
        "dates": np.array(["2026-01-01"], "M8[ms]"),
        "masked": np.ma.masked_array([1.0, 2.0], [True, False]),
        "frozen": FrozenDict({"a": 1, "b": np.arange(3)}),
        "packed": [{i: [str(i), float(i), (None, 2**70)] for i in range(64)}, *range(256)],
        "classes": [Parts(1, {"a": 2}), targets.Pair(1, [2.0])],  # that the targets have imported
    }


def foreign() -> dict[str, str]:
    """Schemas of values of other libraries, as they write them: made by hand, so that these need not be installed."""
    zeros = {
        "csr": ["scipy.sparse.csr_array", [[2, 2], [True, True]], {"data": "<f8", "indices": "<i4", "indptr": "<i4"}],
        "coo": ["scipy.sparse.coo_array", [[2, 2], True], {"data": "<f8", "coord0": "<i4", "coord1": "<i4"}],
        "dia": ["scipy.sparse.dia_array", [[2, 2]], {"data": "<f8", "offsets": "<i4"}],
        "lil": ["scipy.sparse.lil_matrix", [[2, 2], [True, True]], {"data": "<f8", "indices": "<i4", "indptr": "<i4"}],
        "categorical": ["pandas.Categorical", [False], {"codes": "|i1", "categories": "<f8"}],
        "dates": ["pandas.DatetimeArray", ["datetime64[ns, UTC]"], {"values": "<i8"}],
        "integers": ["pandas.IntegerArray", [], {"values": "<i8", "mask": "|b1"}],
        "sparse": ["pandas.SparseArray", ["integer"], {"values": "<f8", "indices": "<i4"}],
        "table": ["pyarrow.Table", [], {"stream": "|u1"}],
        "tensor": ["torch.Tensor", ["strided", True, "bfloat16"], {"data": "<i2"}],
        "coo tensor": ["torch.Tensor", ["sparse_coo", False, [2, 2], True], {"indices": "<i8", "values": "<f4"}],
        "csr tensor": ["torch.Tensor", ["sparse_csr", False, [2, 2]],
                       {"crow_indices": "<i8", "col_indices": "<i8", "values": "<f4"}],
        "jax": ["jax.Array", ["array", "bfloat16", False], {"data": "<u2"}],
        "key": ["jax.Array", ["key", "fry"], {"data": "<u4"}],
        "bits": ["ml_dtypes.array", ["bfloat16", False], {"bits": "<u2"}],
    }  # fmt: skip
    made = {}
    for name, (adapter, meta, parts) in zeros.items():
        nodes = [["array", 64 * at, dtype, [3 if part in ("indptr", "crow_indices") else 2], None]
                 for at, (part, dtype) in enumerate(parts.items())]  # fmt: skip
        made[name] = json.dumps({"value": ["adapter", [adapter, meta, list(parts)], nodes]})
    return made


#: target -> name -> what once was a crash, a hang, or another error than it should be
FOUND: dict[str, dict[str, bytes]] = {
    "schema": {
        "stat_result": b'{"value":["namedtuple",["os","stat_result",[]],[]]}\n',
        "name-true": b'{"value":["adapter",["numpy.matrix",[],[true]],[["none",0]]]}\n',
        "field-1": b'{"value":["dataclass",["os","x",[1]],[["none",0]]]}\n',
        "same-bytes": b'{"value":["list",2,[["str",0,8],["str",0,8]]]}\n01234567',
        "extra-text": b'{"value":["none",0],"extra":["str",0,1]}\n\xff',
        "largest": b'{"value":["array",64,"|u1",[9223372036854775807],null]}\n' + bytes(128),
        "zero-stride": b'{"value":["array",0,"|u1",[1099511627776],[0]]}\n' + bytes(8),
        "comma": b'{"value":["array",0,",f8",[2],null]}\n' + bytes(16),
        "float-key": b'{"value":["dict",[["float","0x1p99999999"]],[["none",0]]]}\n',
        "no-fields": b'{"value":["array",0,[],[3],null]}\n',
    },
    "socket": {
        "number": b"5\n",
        "list": b"[]\n",
        "type-list": b'{"error":[1],"type":[]}\n',
        "deep": b"[" * 4000 + b"\n",
        "newline": b"h\n0: 2 0 unheard-of 0001 01 7 @untorn/0/x\n",
    },
}


def frozen_parts(data: dict[Any, Any]) -> list[bytes]:
    """Return the parts of a FrozenDict: index, entries, blob and documents."""
    parts = FrozenDict(data).parts()
    return [bytes(memoryview(parts[name])) for name in ("index", "entries", "blob", "documents")]


def frozen_input(parts: list[bytes]) -> bytes:
    """Join the parts as the target of FrozenDicts takes them."""
    return struct.pack("<3I", *map(len, parts[:3])) + b"".join(parts)


def changes_of_base(changes: dict[Any, Any], removed: tuple[Any, ...]) -> list[bytes]:
    """Return the parts of changes of the base of the targets."""
    overlay = Overlay.begin(base := base_table(), allow_pickle=False)
    overlay.add(changes, base)
    overlay.add(dict.fromkeys(removed, REMOVED) | dict(list(changes.items())[:1]), base)
    parts = overlay.changes().parts
    return [bytes(memoryview(parts[name])) for name in ("index", "entries", "blob", "documents")]


def merge_input(base: list[bytes], changes: list[bytes]) -> bytes:
    """Join a base and changes as the C target of merging takes them; they have one blob."""
    heads = [struct.pack("<BBH", 0, (len(part[0]) // 80).bit_length() - 1, len(part[1])) for part in (base, changes)]
    return b"".join([*heads, *base[:2], *changes[:2], max(base[2], changes[2], key=len)])


def damaged_axes() -> bytes:
    """An array of 2**63 - 1 bytes in a blob of 168."""
    parts = frozen_parts({"first": np.zeros(64, "u1"), "a": np.arange(100, dtype="u1")})
    parts[1] = parts[1].replace(struct.pack("<QQ", 100, 100), struct.pack("<QQ", 100, LARGEST))
    return frozen_input(parts)


def frozen_dicts() -> dict[str, dict[Any, Any]]:
    """Tables of several sizes, with every kind of key and value."""
    return {
        "empty": {},
        "kinds": {"none": None, "bool": True, "int": -5, "float": 0.5, "complex": 1j, "str": "text", "bytes": b"raw",
                  "big": 2**80, "list": [1, [2, "x"]], "tuple": (1, ()), "dict": {"a": 1, 2: b"b"}},
        "keys": {1: 1, -(2**70): 2, "\ud800": 3, b"\0": 4, "": 5},
        "arrays": {"a": np.arange(6.0).reshape(2, 3), "s": np.float32(1), "u": np.array(["a", "bc"]), "e": np.zeros(0)},
        "others": {"p": OrderedDict(a=1), "q": OrderedDict(a=2), "f": FrozenDict({"x": 1})},
        "many": {key: key for key in range(60)},
    }  # fmt: skip


def checkpoints() -> dict[str, bytes]:
    """Checkpoints, and one of a dtype that NumPy does not have."""
    made = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, params, progress in (
            ("plain", {"w": np.ones(3, "f4")}, checkpoint.Progress(step=1, epoch=1, settings={"seed": 0})),
            ("half", {"w": np.ones(2), "v": np.zeros(2, "S3")}, checkpoint.Progress(
                step=7, epoch=1, step_in_epoch=2, settings={"learning_rate": 0.1}, metrics=["accuracy"],
                history={"epoch": [0], "history": {"loss": [1.5]}, "seconds": [0.5], "examples_per_s": [8.0]},
                callbacks={"EarlyStopping 0": {"best": 1.0}}, score=1.5)),
        ):  # fmt: skip
            path = Path(directory) / "file"
            checkpoint.write(path, progress, params=params, state=None, records=np.zeros((2, 3)))
            made[name] = in_order(path.read_bytes())
    made["float8"] = made["plain"].replace(b'"F32"', b'"F8X"')
    made["size"] = struct.pack("<Q", 2**60) + made["plain"][8:]
    return made


def in_order(data: bytes) -> bytes:
    """The same checkpoint; the library that writes it puts its header into another order each time."""
    (nbytes,) = struct.unpack("<Q", data[:8])
    header = json.dumps(json.loads(data[8 : 8 + nbytes]), sort_keys=True).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + nbytes :]


def changes(*operations: tuple[int, int, int, int]) -> bytes:
    """Operations on the files of a channel or a queue."""
    return b"".join(struct.pack("<BBHQ", *operation) for operation in operations)


def link(way: int, *operations: tuple[int, bytes]) -> bytes:
    """What the peers of a link do, see fuzz_link.c."""
    return bytes([way]) + b"".join(bytes((what, len(data))) + data for what, data in operations)


def made() -> dict[str, dict[str, bytes]]:
    """The whole corpus: target -> name -> bytes."""
    found: dict[str, dict[str, bytes]] = {"schema": {}, "frozendict": {}, "frozen": {}, "merge": {}, "changes": {}}
    for name, value in values().items():
        schema, payload = pack(value, plain=True)
        found["schema"][name] = schema + b"\n" + bytes(payload)
    for name, schema in foreign().items():
        found["schema"][f"foreign-{name.replace(' ', '-')}"] = schema.encode() + b"\n" + bytes(256)
    for name, data in frozen_dicts().items():
        parts = frozen_parts(data)
        found["frozendict"][name] = frozen_input(parts)
        buckets = len(parts[0]) // 80
        found["frozen"][name] = struct.pack("<BBH", 0, buckets.bit_length() - 1, len(parts[1])) + parts[0] + parts[1]
        changed = changes_of_base(data, ("key 1", "key 7"))
        found["changes"][name] = frozen_input(changed)
        found["merge"][name] = merge_input(frozen_parts(dict(base_table())), changed)
    found["frozendict"]["largest"] = damaged_axes()
    found["checkpoint"] = checkpoints()
    found["socket"] = {
        "status": b'{"do": "status"}\n',
        "workers": b'{"do": "resize", "workers": 4}\n',
        "by": b'{"do": "resize", "by": -1}\n',
        "answer": b'{"step": 7, "losses": [[1, 0.5]], "workers": [{"index": 0, "pid": 5}]}\n',
        "error": b'{"error": "no", "type": "ValueError"}\n',
        "table": b"Num RefCount Protocol Flags Type St Inode Path\n0: 2 0 00010000 0001 01 7 @untorn/0/policy\n",
    }
    found["channel"] = {
        "healthy": b"",
        "latest": changes((3, 0, 0, 64), (3, 0, 0, 2**63), (3, 0, 0, 65 << 6 | 5)),
        "extents": changes((4, 0, 0, 2**62), (4, 0, 24, 2**63), (4, 0, 16, 4097)),
        "header": changes((5, 7, 16, 2**40), (5, 7, 24, 2**63), (5, 7, 4096 + 16, 0)),
        "rows": changes((2, 7, 64, 2**64 - 1), (2, 3, 4, 2**32 - 1), (0, 7, 40, 2**63)),
        "cut": changes((6, 0, 0, 4096), (7, 0, 0, 4096)),
        "sizes": changes((0, 3, 32, 2**32 - 1), (0, 3, 36, 65), (0, 3, 56, 2**32 - 1)),
    }
    found["queue"] = {
        "healthy": b"",
        "identity": changes((0, 3, 8, 9), (0, 7, 32, 0), (0, 3, 48, 2**32 - 1), (0, 7, 72, 2**63)),
        "positions": changes((0, 7, 192, 2**63), (0, 7, 256, 2**62)),
        "behind": changes((0, 7, 256, 2**40)),
        "returned": changes((0, 7, 320, 2**64 - 1), (3, 7, 0, 6 << 13)),
        "space": changes((0, 7, 328, 1 << 18 | 1), (3, 7, 64 + 16, 2**64 - 1)),
        "rows": changes((0, 3, 336, 2**32 - 1), (2, 7, 128, 2**64 - 1), (2, 3, 64, 1)),
        "words": changes(
            *[(3, 7, 64 * slot, 64 + slot << 16 | state << 13 | 1) for slot, state in enumerate(range(8))]
        ),
        "pages": changes((3, 7, 64 + 8, 2**32 - 1), (3, 7, 128 + 8, 2**63 | 17), (3, 7, 64 + 24, 2**63)),
        "ring": changes((4, 7, 0, 1 << 18 | 5000), (4, 7, 8, 2**64 - 1), (4, 7, 16, 0)),
        "later-round": changes((4, 7, 24, 1000 << 18)),  # once, putting looked for an older round for ever
        "no-such-slot": changes((0, 7, 328, 1 << 18 | 1000)),  # and changes of a slot's pages for another change
        "ends": changes((4, 7, 24, 1 << 18 | (1 << 18) - 1)),
        "map": changes((5, 7, 0, 0)),
        "cut": changes((7, 0, 0, 8192)),
        "items": changes((6, 7, 0, 2**64 - 1), (6, 7, 1024 + 8, 2**63), (6, 7, 2048 + 16, 2**32)),
    }
    found["queues"] = found["queue"]
    # the frames of a step that a peer has to send: of one hop, and scattered
    hop = [(4, bytes(frame)) for frame in ((1, 0), (2, 1), (2, 2), (3, 128), (3, 129))]
    parts = [(1, 0), (2, 0), (2, 2), (3, 0), (3, 1), (3, 130), (3, 131), (4, 2), (4, 3), (4, 4)]
    scattered = [(4, bytes(frame)) for frame in parts]
    own, work = (8, b""), (12, b"")
    found["link"] = {
        "step": link(24, own, *hop, work),
        "steps": link(24, *[own, *hop, work] * 4),
        "early": link(24, *hop, own, work),
        "ahead": link(24, (4, bytes((1, 0, 16, 1))), own, *hop, work, own, *hop[1:], work),
        "twice": link(24, *hop, hop[3]),
        "parts": link(28, own, *scattered, work),
        "early-parts": link(28, *scattered, own, work, *[own, work, *scattered] * 2),
        "sessions": link(24, (4, bytes((1, 0, 8, 255))), (4, bytes((3, 0, 8, 1))), own),
        "alive": link(24, (4, bytes(2)), (4, bytes((0, 0, 36, 1)))),
        "garbage": link(24, (0, b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n")),
        "fields": link(27, own, *[(4 + kind % 4, bytes((kind, 0, 24 + 4 * kind, 1))) for kind in (1, 2, 3, 4)], work),
        "nodes": link(91, own, *[(4 + peer, bytes((kind, 0))) for peer in range(4) for kind in (1, 2, 3)], work),
    }
    found["files"] = {
        "healthy": b"",
        "latest": changes((0, 7, 64, 1 << 6), (0, 7, 64, 2**63)),
        "extents": changes((0, 7, 128, 1), (0, 7, 144, 2**62), (0, 7, 152, 64)),
        "header": changes((1, 7, 16, 2**40), (1, 7, 24, 2**63), (1, 7, 4096 + 24, 2**33)),
        "schema": changes((1, 3, 70, 0x22222222), (1, 7, 4096 + 80, 0x3939393939393939)),
        "cut": changes((0x7E, 0, 0, 1000), (0x7F, 0, 0, 4097)),
        "identity": changes((0, 3, 8, 9), (0, 7, 32, 0), (0, 7, 40, 2**63)),
    }
    for target, inputs in FOUND.items():
        found[target].update({f"found-{name}": data for name, data in inputs.items()})
    return found


def main() -> None:
    """Write what made() makes, and remove what it does not."""
    corpus = made()
    wanted = {HERE / target / name: data for target, inputs in corpus.items() for name, data in inputs.items()}
    for path in [each for each in HERE.rglob("*") if each.is_file() and each not in wanted]:
        path.unlink()
    for path, data in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    nbytes, digest = sum(map(len, wanted.values())), hashlib.sha256(b"".join(wanted.values())).hexdigest()[:8]
    print(f"{len(wanted)} files, {nbytes:,} bytes, {digest}")


if __name__ == "__main__":
    main()
