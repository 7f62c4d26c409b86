"""Reading a damaged checkpoint raises FormatError, naming the file; resuming skips it with a warning that names it,
and continues from the one before. No content of a file makes a reader wait or allocate much memory."""

import hashlib
import json
import os
import socket
import struct

import numpy as np
import pytest

from untorn.errors import FormatError
from untorn.train import SGD, Trainer
from untorn.train.checkpoints import checkpoint
from untorn.train.checkpoints.saver import newest

SETTINGS = {"learning_rate": None}


def write(path, step, **arrays):
    progress = checkpoint.Progress(step=step, epoch=1, settings=SETTINGS)
    arrays = arrays or {"w": np.arange(8, dtype="u1"), "v": np.arange(6.0).reshape(2, 3)}
    checkpoint.write(path, progress, params=arrays, state=None, records=np.zeros((1, 3)))


@pytest.fixture
def two(tmp_path):
    """Write checkpoints of steps 1 and 2, the second of which is to be damaged."""
    paths = [tmp_path / f"step-{step:012}.safetensors" for step in (1, 2)]
    for step, path in enumerate(paths, 1):
        write(path, step)
    return paths


def header_of(path):
    data = path.read_bytes()
    (nbytes,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + nbytes]), data[8 + nbytes :]


def put(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def check_passed_over(path, reason=""):
    """Check that reading it raises an error that names it, and that the checkpoint before it is found instead."""
    with pytest.raises(FormatError, match=path.name):
        checkpoint.read(path)
    with pytest.warns(RuntimeWarning, match=rf"{path.name}.*{reason}.*resuming from step-0*1\.safetensors"):
        assert newest(path.parent).progress.step == 1


def of(name, **changes):
    return lambda header: {**header, name: {**header[name], **changes}}


HEADERS = {
    "float8": of("params/w", dtype="F8_E4M3"),
    "bfloat16": of("params/w", dtype="BF16", shape=[4]),
    "an unknown dtype": of("params/w", dtype="Q4"),
    "a number as dtype": of("params/w", dtype=8),
    "a list as dtype": of("params/w", dtype=["U8"]),
    "another dtype of that size": of("params/v", dtype="I64"),
    "another shape of that size": of("params/v", shape=[3, 2]),
    "a negative shape": of("params/w", shape=[-8]),
    "a shape of fractions": of("params/w", shape=[8.0]),
    "a shape of truths": of("params/w", shape=[True] * 3),
    "a shape that overflows": of("params/w", shape=[2**62, 2**62]),
    "a shape that is a number": of("params/w", shape=8),
    "offsets beyond the end": of("params/w", data_offsets=[0, 2**60]),
    "negative offsets": of("params/w", data_offsets=[-8, 0]),
    "offsets the wrong way round": of("params/w", data_offsets=[8, 0]),
    "one offset": of("params/w", data_offsets=[8]),
    "offsets of text": of("params/w", data_offsets=["0", "8"]),
    "no offsets": lambda header: {**header, "params/w": {"dtype": "U8", "shape": [8]}},
    "a tensor that is a list": lambda header: {**header, "params/w": []},
    "a tensor too few": lambda header: {name: said for name, said in header.items() if name != "params/w"},
    "a tensor too many": lambda header: {**header, "x": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}},
    "no metadata": lambda header: {name: said for name, said in header.items() if name != "__metadata__"},
    "metadata that is a list": lambda header: {**header, "__metadata__": []},
    "metadata that is none": lambda header: {**header, "__metadata__": None},
    "metadata of numbers": lambda header: {**header, "__metadata__": {"untorn": 1, "sha256": 2}},
    "another digest": lambda header: {**header, "__metadata__": {**header["__metadata__"], "sha256": "0" * 64}},
    "metadata of half a character": lambda header: {**header, "__metadata__": {"untorn": "\ud800", "sha256": ""}},
    "a list": lambda header: [header],
    "none": lambda header: None,
    "no JSON": lambda header: b"{" * 64,
    "deep JSON": lambda header: b"[" * 100_000,
    "no UTF-8": lambda header: b"\xff" * 64,
    "UTF-16": lambda header: json.dumps(header).encode("utf-16"),
    "nothing": lambda header: b"",
}


@pytest.mark.parametrize("how", HEADERS)
def test_a_damaged_header(how, two):
    header, data = header_of(two[1])
    put(two[1], HEADERS[how](header), data)
    check_passed_over(two[1])


def test_an_unknown_dtype_is_named(two):
    header, data = header_of(two[1])
    put(two[1], HEADERS["float8"](header), data)
    check_passed_over(two[1], "params/w has the dtype F8_E4M3, which untorn never writes")


DOCUMENTS = {
    "a format that is text": {"format": "1"},
    "a format that is true": {"format": True},
    "a step that is text": {"step": "2"},
    "a step that is true": {"step": True},
    "a step that is a fraction": {"step": 2.5},
    "a step before the first": {"step": -1},
    "an epoch that is none": {"epoch": None},
    "seconds that are text": {"seconds": "long"},
    "a rate that is text": {"rate_of_epoch": "0.1"},
    "a learning rate that is text": {"settings": {"learning_rate": "0.1"}},
    "no learning rate in the middle of an epoch": {"step_in_epoch": 1, "settings": {}},
    "settings that are a list": {"settings": []},
    "a history that is a list": {"history": []},
    "a history of several lengths": {"history": {"epoch": [0], "seconds": []}},
    "a history of text": {"history": {"epoch": ["0"], "seconds": [0.0], "examples_per_s": [0.0], "history": {}}},
    "metrics that are a text": {"metrics": "loss"},
    "metrics that are numbers": {"metrics": [1]},
    "callbacks that are a list": {"callbacks": []},
    "a score that is text": {"score": "best"},
    "a digest that is a number": {"sha256": 5},
    "a field that nobody knows": {"more": 1},
    "tensors that are a list": {"tensors": []},
    "a tensor that is a text": {"tensors": {"params/w": "|u1"}},
    "a dtype of objects": {"tensors": {"params/w": ["|O", [1], 0]}},
    "a dtype that NumPy does not know": {"tensors": {"params/w": ["F8", [8], 0]}},
    "a shape that overflows": {"tensors": {"params/w": ["|u1", [2**62, 2**62], 0]}},
    "a checksum that is text": {"tensors": {"params/w": ["|u1", [8], "0"]}},
}


@pytest.mark.parametrize("how", DOCUMENTS)
def test_metadata_of_other_types(how, two):
    """Write it with a matching digest, so that only the types are wrong."""
    header, data = header_of(two[1])
    document = json.loads(header["__metadata__"]["untorn"])
    changed = DOCUMENTS[how]
    text = json.dumps(document | {name: document["tensors"] | value if name == "tensors" and isinstance(value, dict)
                                  else value for name, value in changed.items()})  # fmt: skip
    header["__metadata__"] = {"untorn": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    put(two[1], header, data)
    check_passed_over(two[1])


@pytest.mark.parametrize("nbytes", [2**60, 2**63, 2**64 - 1, 2**40, 100_000_001, 10_000])
def test_a_header_that_says_any_size(nbytes, two):
    data = two[1].read_bytes()
    two[1].write_bytes(struct.pack("<Q", nbytes) + data[8:])
    check_passed_over(two[1], "its header ends at byte")


def test_a_file_that_is_all_hole(two):
    os.truncate(two[1], 0)
    os.truncate(two[1], 2**40)  # a sparse file needs no room in the file system
    with open(two[1], "rb+") as file:
        file.write(struct.pack("<Q", 2**39))
    check_passed_over(two[1], "its header ends at byte")


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, -1, -8])
def test_a_file_that_was_cut_short(kept, two):
    os.truncate(two[1], kept if kept >= 0 else two[1].stat().st_size + kept)
    check_passed_over(two[1])


def test_a_file_that_is_cut_short_while_it_is_read(two, monkeypatch):
    """The reader gets an error, and not a signal from a mapping."""
    read = checkpoint.tensorfile.TensorFile.read

    def cut(self, name):
        os.truncate(self.path, self.tensors[name].start + 1)
        return read(self, name)

    monkeypatch.setattr(checkpoint.tensorfile.TensorFile, "read", cut)
    with pytest.raises(FormatError, match=r"step-0*2.safetensors is damaged: it ends inside "):
        checkpoint.read(two[1])


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket", "link"])
def test_what_is_no_file_neither_blocks_nor_stops_resuming(kind, two, monkeypatch):
    monkeypatch.chdir(two[1].parent)
    two[1].unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "folder":
            two[1].mkdir()
        elif kind == "pipe":
            os.mkfifo(two[1])
        elif kind == "socket":
            listener.bind(two[1].name)  # a socket's address has room for 108 bytes
        else:
            two[1].symlink_to("nowhere")
        with pytest.warns(RuntimeWarning, match=r"step-0*2.safetensors.* resuming from step-0*1"):
            assert newest(two[1].parent).progress.step == 1


def test_one_that_cannot_be_read_is_not_taken_for_damaged(two, monkeypatch):
    """It may be intact, and skipped checkpoints are removed when training continues."""

    def failing(path, *_):
        raise OSError(5, "Input/output error", os.fspath(path))

    monkeypatch.setattr(checkpoint.tensorfile.os, "open", failing)
    with pytest.raises(OSError, match=r"Input/output error: .*step-0*2"):
        newest(two[1].parent)


@pytest.mark.parametrize("dtype", [">f4", ">i8", "<f4", "<c16", "|S3", "<U2", "M8[ns]", "?", "<f2"])
def test_arrays_of_every_dtype_come_back(dtype, tmp_path):
    written = {"w": np.zeros((2, 3), dtype), "v": np.array(1, dtype), "u": np.zeros((0, 4), dtype)}
    write(tmp_path / "file", 1, **written)
    found = checkpoint.read(tmp_path / "file").tensors
    for name, array in written.items():
        there = found[f"params/{name}"]
        assert (there.dtype, there.shape) == (array.dtype, array.shape) and there.tobytes() == array.tobytes()


def quadratic(params, batch):
    return float((params["w"] ** 2).sum()), {"w": 2 * params["w"]}


def test_training_goes_on_from_the_one_before(tmp_path):
    data = np.ones((4, 1), "f4")

    def make():
        return Trainer(quadratic, {"w": np.ones(3, "f4")}, optimizer=SGD(0.1), engine="serial", shards=1)

    def fit(trainer):
        trainer.fit(data, epochs=3, batch_size=2, checkpoint_dir=tmp_path, resume=True, keep=9)
        return trainer.params["w"].tobytes()

    with make() as trainer:
        whole = fit(trainer)
    last = max(tmp_path.glob("step-*"))
    header, body = header_of(last)
    put(last, HEADERS["float8"](header), body)
    with make() as trainer:
        with pytest.raises(FormatError, match="F8_E4M3"):
            trainer.load(last)
        with pytest.warns(RuntimeWarning, match=f"{last.name}.*F8_E4M3"):
            assert fit(trainer) == whole
