"""PyTorch tensors: on the version's memory, writable, and their writes seen by no other process."""

import collections
import io
import subprocess
import sys

import numpy as np
import pytest
import torch

import untorn
from helpers import start
from untorn.errors import FormatError, UnsupportedTypeError
from untorn.share.decoder import Decoder
from untorn.share.layout import pack

DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
)
COMPRESSED = ("csr", "csc", "bsr", "bsc")


def in_a_channel(tensor) -> bool:
    """Return whether its memory lies in a mapping of a channel."""
    address = tensor.data_ptr()
    with open("/proc/self/maps") as maps:
        for line in maps:
            first, last = (int(end, 16) for end in line.split()[0].split("-"))
            if first <= address < last:
                return "untorn" in line
    return False


def bits(tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def same(got, value) -> bool:
    return got.dtype == value.dtype and got.shape == value.shape and bits(got) == bits(value)


@pytest.fixture
def publisher():
    with untorn.publish(0) as publisher:
        yield publisher


@pytest.fixture
def reader(publisher):
    subscriber = publisher.subscriber()

    def read(value):
        publisher.update(value)
        return subscriber.snapshot().value

    yield read
    subscriber.close()


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype(name, reader):
    dtype = getattr(torch, name)
    memory = torch.arange(6 * dtype.itemsize, dtype=torch.uint8).remainder(2)
    value = memory.view(dtype).reshape(2, 3)
    got = reader({"t": value})["t"]
    assert type(got) is torch.Tensor
    assert same(got, value)
    assert in_a_channel(got)


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(6.0).reshape(2, 3).T,
        torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        torch.arange(24).bfloat16().reshape(4, 6).T,
    ],
    ids=["transposed", "channels_last", "permuted", "bfloat16"],
)
def test_the_order_of_the_axes_is_kept(value, reader):
    got = reader(value)
    assert same(got, value)
    assert got.stride() == value.stride()
    assert in_a_channel(got)


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(20.0)[::3],
        torch.arange(20.0).reshape(4, 5)[1:3, 1:4],
        torch.arange(8, dtype=torch.uint8).view(torch.bfloat16)[::2],
        torch.tensor(2.5),
        torch.tensor(2.5).bfloat16(),
    ],
    ids=["stepped", "window", "bfloat16", "0-d", "0-d bfloat16"],
)
def test_what_has_gaps_arrives_without(value, reader):
    got = reader(value)
    assert same(got, value)
    assert got.is_contiguous()
    assert in_a_channel(got)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0, 3)])
def test_empty(shape, reader):
    got = reader([torch.empty(shape), torch.empty(shape, dtype=torch.bfloat16)])
    assert [each.shape for each in got] == [shape, shape]
    assert [each.dtype for each in got] == [torch.float32, torch.bfloat16]


def test_what_expand_repeated_is_written_out(reader):
    got = reader(torch.tensor([[1.0], [2.0]]).expand(2, 3))
    got[0, 0] = 7
    assert got.tolist() == [[7, 1, 1], [2, 2, 2]]


def test_pending_conjugation_and_negation_are_resolved(reader):
    value = torch.tensor([1 + 2j, 3 - 4j])
    assert value.conj().is_conj()
    assert value.conj().imag.is_neg()
    got = reader([value.conj(), value.conj().imag, value.conj().to_sparse()])
    assert got[0].tolist() == [1 - 2j, 3 + 4j]
    assert got[1].tolist() == [-2, 4]
    assert not got[0].is_conj()
    assert not got[1].is_neg()
    assert got[2].to_dense().tolist() == [1 - 2j, 3 + 4j]


def test_requires_grad_is_kept_and_a_result_arrives_detached(reader):
    leaf = torch.ones(2, requires_grad=True)
    got = reader({"leaf": leaf, "plain": torch.ones(2), "result": leaf * 2})
    assert {name: each.requires_grad for name, each in got.items()} == {"leaf": True, "plain": False, "result": False}
    (got["leaf"] * 3).sum().backward()
    assert got["leaf"].grad.tolist() == [3, 3]
    assert got["result"].tolist() == [2, 2]


@pytest.mark.parametrize("requires_grad", [True, False])
def test_parameters(requires_grad, reader):
    value = torch.nn.Parameter(torch.arange(3.0), requires_grad=requires_grad)
    got = reader({"p": value})["p"]
    assert type(got) is torch.nn.Parameter
    assert got.requires_grad == requires_grad
    assert got.tolist() == [0, 1, 2]
    assert in_a_channel(got)


def test_tied_weights_arrive_apart(reader):
    value = torch.zeros(3)
    got = reader({"encoder": value, "decoder": value})
    got["encoder"].add_(1)
    assert got["decoder"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("coalesced", [True, False])
def test_sparse_coo(coalesced, dtype, reader):
    values = torch.tensor([1, 2, 3], dtype=dtype)
    value = torch.sparse_coo_tensor([[0, 1, 1], [2, 0, 0]], values, (2, 4), check_invariants=True)
    value = value.coalesce() if coalesced else value
    got = reader({"s": value})["s"]
    assert got.layout == torch.sparse_coo
    assert got.is_coalesced() == coalesced
    assert got.dtype == dtype
    assert torch.equal(got.to_dense(), value.to_dense())
    assert in_a_channel(got._indices())
    assert in_a_channel(got._values())


def test_sparse_coo_with_dense_dimensions_and_gradients(reader):
    value = torch.sparse_coo_tensor([[0, 2]], torch.ones(2, 3), (4, 3), requires_grad=True, check_invariants=True)
    got = reader(value)
    assert (got.sparse_dim(), got.dense_dim()) == (1, 1)
    assert got.requires_grad
    torch.sparse.sum(got).backward()
    assert got.grad.to_dense()[0].tolist() == [1, 1, 1]


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state:UserWarning")
@pytest.mark.parametrize("kind", COMPRESSED)
def test_sparse_compressed(kind, reader):
    dense = torch.tensor([[0.0, 1, 0, 2], [0, 0, 0, 0], [3, 0, 0, 0], [0, 0, 4, 5]])
    value = getattr(dense, f"to_sparse_{kind}")(*([(2, 2)] if kind.startswith("b") else []))
    got = reader({"s": value})["s"]
    assert got.layout == value.layout
    assert torch.equal(got.to_dense(), dense)
    assert in_a_channel(got.values())
    assert in_a_channel(got.crow_indices() if kind in ("csr", "bsr") else got.ccol_indices())


class Subclass(torch.Tensor):
    pass


def in_vmap():
    torch.func.vmap(lambda row: untorn.publish({"t": row}))(torch.ones(2, 2))


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (lambda: torch.ones(2, device="meta"), r"^t: a tensor on the meta device.*to_empty"),
        (lambda: torch.ones(2).to_mkldnn(), r"^t: a tensor of layout torch._mkldnn; share its \.to_dense"),
        (lambda: torch.empty(2, dtype=torch.quint8), r"^t: a quantized tensor.*dequantize"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), r"^t: a nested tensor.*unbind"),
        (lambda: torch.ones(2).as_subclass(Subclass), r"^t: cannot share .*Subclass"),
        (torch.nn.UninitializedParameter, r"^t: cannot share .*UninitializedParameter"),
        (in_vmap, r"^t: .*outside torch\.func"),
    ],
    ids=["meta", "layout", "quantized", "nested", "subclass", "uninitialized", "vmap"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning", "ignore:The PyTorch API of nested:UserWarning")
def test_what_cannot_be_shared(value, match):
    with pytest.raises(UnsupportedTypeError, match=match):
        untorn.publish({"t": value()})


def test_another_device_is_named():
    from untorn.adapters import torch as adapters

    class Elsewhere:
        device = torch.device("cuda", 1)
        is_quantized = is_nested = False

    with pytest.raises(UnsupportedTypeError, match=r"device 'cuda:1'; expected CPU memory.*share its \.cpu\(\)"):
        adapters.ADAPTERS[0].take_apart(Elsewhere())


def test_whatever_a_reader_writes_stays_its_own(publisher):
    publisher.update({"w": torch.zeros(2000), "b": torch.zeros(3)})
    with publisher.subscriber() as subscriber, publisher.subscriber() as other:
        first = subscriber.snapshot().value
        first["w"].add_(1)
        first["w"].copy_(torch.full((2000,), 2.0))
        torch.add(first["w"], 1, out=first["w"])
        first["b"].numpy()[...] = 9
        first["b"][0] = 8
        optimizer = torch.optim.SGD([first["w"].requires_grad_()], lr=1.0)
        first["w"].sum().backward()
        optimizer.step()
        assert first["w"].tolist() == [2.0] * 2000
        assert first["b"].tolist() == [8, 9, 9]
        for snapshot in (subscriber.snapshot(), other.snapshot()):
            assert not snapshot.value["w"].any()
            assert not snapshot.value["b"].any()
        assert publisher.patch({"b": torch.ones(3)}) == 3
        assert not subscriber.snapshot().value["w"].any()


def test_a_model_takes_a_snapshot_as_its_own(publisher):
    source = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
    state = source.state_dict()
    assert hasattr(state, "_metadata")
    publisher.update(state)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))
    with publisher.subscriber().snapshot() as snapshot:
        assert type(snapshot.value) is collections.OrderedDict
        model.load_state_dict(snapshot.value, assign=True)
    publisher.close()
    assert all(type(each) is torch.nn.Parameter and each.requires_grad for each in model.parameters())
    assert in_a_channel(model[0].weight)
    x = torch.arange(8.0).reshape(2, 4)
    assert torch.equal(model.eval()(x), source.eval()(x))
    optimizer = torch.optim.Adam(model.train().parameters(), lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, source[0].weight)


def test_the_state_of_an_optimizer(reader):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    got = reader(optimizer.state_dict())
    again = torch.optim.AdamW([torch.nn.Parameter(weight.detach().clone())], lr=0.5)
    again.load_state_dict(got)
    assert again.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    assert torch.equal(got["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


Point = collections.namedtuple("Point", "x y")


def test_any_tree_and_another_structure(reader):
    got = reader({"p": Point(torch.ones(1), [torch.zeros(2), np.ones(3)]), "n": 3})
    assert type(got["p"]) is Point
    assert same(got["p"].y[0], torch.zeros(2))
    assert type(got["p"].y[1]) is np.ndarray
    assert not got["p"].y[1].flags.writeable
    assert same(reader((torch.ones(2, 2), None))[0], torch.ones(2, 2))
    assert same(reader(torch.ones(5).half()), torch.ones(5).half())


def test_a_tensor_outlives_all_else():
    with untorn.publish({"t": torch.arange(1000.0)}) as publisher, publisher.subscriber() as subscriber:
        with subscriber.snapshot() as snapshot:
            tail = snapshot.value["t"][990:]
        for _ in range(6):
            publisher.update({"t": torch.zeros(1000)})
    assert tail.tolist() == list(range(990, 1000))
    assert in_a_channel(tail)


def test_first_read_inside_inference_mode(publisher):
    publisher.update([torch.ones(2, requires_grad=True), torch.ones(2)])
    with torch.inference_mode():
        leaf, plain = publisher.subscriber().snapshot().value
    (leaf * plain).sum().backward()
    assert leaf.grad.tolist() == [1, 1]


def test_first_read_inside_a_default_device(publisher):
    publisher.update([torch.ones(2), torch.eye(2).to_sparse(), torch.nn.Parameter(torch.ones(2))])
    with torch.device("meta"):
        value = publisher.subscriber().snapshot().value
    assert {each.device.type for each in value} == {"cpu"}


def test_edit_in_place(publisher):
    publisher.update({"w": torch.zeros(4), "h": torch.zeros(4).bfloat16(), "s": torch.eye(2).to_sparse()})
    with publisher.edit() as params:
        params["w"] += 1
        params["w"].mul_(3)
        params["h"].add_(2)
        params["s"]._values().mul_(5)
        kept, piece = params["w"], params["h"][1:]
    kept.fill_(100)
    piece.fill_(100)
    with publisher.subscriber().snapshot() as snapshot:
        assert snapshot.value["w"].tolist() == [3] * 4
        assert snapshot.value["h"].tolist() == [2] * 4
        assert snapshot.value["s"].to_dense().tolist() == [[5, 0], [0, 5]]
    with publisher.edit() as params:
        params["w"] = torch.full((4,), 7.0)
        params["h"] = params["h"] * 2
    value = publisher.subscriber().snapshot().value
    assert value["w"].tolist() == [7] * 4
    assert value["h"].tolist() == [4] * 4


def test_an_edit_that_fails_publishes_nothing(publisher):
    publisher.update({"w": torch.zeros(4)})
    with pytest.raises(KeyError), publisher.edit() as params:
        params["w"].add_(1)
        raise KeyError
    assert publisher.version == 2
    assert not publisher.subscriber().snapshot().value["w"].any()


def test_edit_of_parameters(publisher):
    publisher.update({"w": torch.nn.Parameter(torch.ones(2))})
    with publisher.edit() as params, torch.no_grad():
        params["w"].sub_(0.5)
    got = publisher.subscriber().snapshot().value["w"]
    assert type(got) is torch.nn.Parameter
    assert got.tolist() == [0.5, 0.5]


def test_edit_of_some_leaves(publisher):
    publisher.update({"w": torch.zeros(4), "b": torch.zeros(2)})
    with publisher.edit(leaves=["b"]) as params:
        params["b"].add_(1)
    assert publisher.subscriber().snapshot().value["b"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="was changed, but was not named"), publisher.edit(leaves=["b"]) as params:
        params["w"].add_(1)
    assert not publisher.subscriber().snapshot().value["w"].any()


def test_patch(publisher):
    publisher.update({"w": torch.zeros(4), "b": torch.zeros(2)})
    publisher.patch({"b": torch.ones(2)})
    publisher.patch({"w": torch.ones(2, 2).bfloat16()})
    got = publisher.subscriber().snapshot().value
    assert same(got["b"], torch.ones(2))
    assert same(got["w"], torch.ones(2, 2).bfloat16())


def read_write_and_wait(pipe, subscriber):
    snapshot = subscriber.snapshot()
    tensor = snapshot.value["t"]
    pipe.put((tensor.dtype, tensor.tolist(), in_a_channel(tensor), type(snapshot.value["p"])))
    tensor.fill_(9)
    pipe.put(tensor.tolist())
    pipe.get()


def test_another_process_reads_writes_and_is_killed(publisher):
    value = {"t": torch.arange(4).bfloat16(), "p": torch.nn.Parameter(torch.ones(2))}
    publisher.update(value)
    with start(read_write_and_wait, publisher.subscriber(), method="spawn") as child:
        assert child.get() == (torch.bfloat16, [0, 1, 2, 3], True, torch.nn.Parameter)
        assert child.get() == [9] * 4
        assert publisher.subscriber().snapshot().value["t"].tolist() == [0, 1, 2, 3]
        child.kill()
    for _ in range(6):
        publisher.update(value)
    assert publisher.subscriber().snapshot().value["t"].tolist() == [0, 1, 2, 3]


def test_the_workers_of_a_data_loader_get_tensors_of_a_snapshot(publisher):
    publisher.update({"x": torch.arange(6.0).reshape(3, 2)})
    data = torch.utils.data.TensorDataset(publisher.subscriber().snapshot().value["x"])
    loader = torch.utils.data.DataLoader(data, batch_size=3, num_workers=1, multiprocessing_context="spawn")
    ((batch,),) = list(loader)
    assert batch.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_copies_by_pickle_and_shared_memory(reader):
    got = reader({"t": torch.arange(4.0)})["t"]
    stream = io.BytesIO()
    torch.save(got, stream)
    stream.seek(0)
    assert torch.load(stream, weights_only=True).tolist() == [0, 1, 2, 3]
    got.share_memory_()
    assert got.tolist() == [0, 1, 2, 3]


LAZY = """
import sys, untorn
reader = untorn.subscribe(sys.argv[1])
assert reader.snapshot().value == {"n": 1}
assert "torch" not in sys.modules
print("ready", flush=True)
sys.stdin.readline()
assert reader.snapshot().value["t"].tolist() == [1, 1]
assert "torch" in sys.modules
"""


def test_torch_is_imported_when_a_tensor_is_read(name):
    with untorn.publish({"n": 1}, name=name) as publisher:
        command = [sys.executable, "-c", LAZY, name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout.readline() == "ready\n"
            publisher.update({"t": torch.ones(2)})
            child.communicate("go\n")
        assert child.returncode == 0
        publisher.unlink()


@pytest.mark.parametrize("other", [b'"bfloat99"', b'"nn"', b'"float64"'])
def test_a_dtype_that_is_none(other):
    schema, payload = pack({"t": torch.ones(3).bfloat16()})
    damaged = schema.replace(b'"bfloat16"', other)
    with pytest.raises(FormatError, match=r"^t: a torch\.Tensor cannot be put together"):
        Decoder(damaged, len(payload), payload=0).value(payload)
