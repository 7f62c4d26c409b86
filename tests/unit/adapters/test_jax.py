"""JAX arrays: on the version's memory, of every dtype.

JAX has threads of its own from its first array on, and warns at every fork after that, while other tests fork. So what
is tested here, the functions named ``jax_...``, runs in its own process; this one never makes a JAX array.
"""

import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import untorn
from helpers import start, untorn_mappings
from untorn.errors import FormatError, UnsupportedTypeError
from untorn.share.decoder import Decoder
from untorn.share.layout import pack

DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz", "float8_e5m2", "float8_e5m2fnuz"),
    *("float8_e3m4", "float8_e4m3", "float8_e8m0fnu", "float4_e2m1fn", "int4", "uint4", "int2", "uint2"),
)
#: XLA packs several of these into a byte, NumPy does not
PACKED = ("int4", "uint4", "int2", "uint2", "float4_e2m1fn")


def test_jax_in_a_process_of_its_own():
    command = [sys.executable, "-m", "pytest", "-q", "-o", "python_functions=jax_*", __file__]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def in_a_channel(array) -> bool:
    """Return whether its memory lies in a mapping of a channel."""
    address = array.unsafe_buffer_pointer()
    with open("/proc/self/maps") as maps:
        for line in maps:
            first, last = (int(end, 16) for end in line.split()[0].split("-"))
            if first <= address < last:
                return "untorn" in line
    return False


def same(got, value) -> bool:
    return (
        isinstance(got, jax.Array)
        and (got.dtype, got.shape, got.weak_type) == (value.dtype, value.shape, value.weak_type)
        and np.asarray(got).tobytes() == np.asarray(value).tobytes()
    )


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
def jax_every_dtype(name, reader):
    with jax.enable_x64(True):
        value = jnp.array([[0, 1, 0], [1, 1, 0]], jnp.dtype(name))
    assert value.dtype.name == name
    got = reader({"a": value})["a"]
    assert same(got, value)
    assert in_a_channel(got) == (name not in PACKED)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (1,), (2, 3, 4), (1 << 20,)])
def jax_every_shape(shape, reader):
    value = jnp.ones(shape)
    got = reader(value)
    assert same(got, value)
    assert in_a_channel(got) or not value.size


def jax_nothing_is_copied_on_the_way_in():
    from untorn.adapters.jax import ADAPTERS

    value = jnp.ones((3, 3), jnp.bfloat16)
    ((_, array),) = ADAPTERS[0].take_apart(value).children.items()
    assert array.ctypes.data == value.unsafe_buffer_pointer()


def jax_wide_arrays_stay_wide_where_x64_is_off(reader):
    with jax.enable_x64(True):
        value = {"n": jnp.array([2**40]), "x": jnp.array([1 / 3]), "step": jnp.asarray(2.0), "k": jnp.array(2**50)}
    assert not jax.config.read("jax_enable_x64")
    got = reader(value)
    assert all(same(got[name], value[name]) for name in value)
    assert got["step"].weak_type
    assert got["n"].tolist() == [2**40]
    assert (got["n"] + got["n"]).tolist() == [2**41]
    with pytest.warns(UserWarning, match="will be truncated"):
        got["x"] * 2


def jax_weak_types(reader):
    value = [jnp.asarray(2.0), jnp.asarray(3), jnp.asarray(1j), jnp.asarray(np.float32(2)), jnp.full(2, 1.0)]
    assert [each.weak_type for each in value] == [True, True, True, False, True]
    got = reader(value)
    assert [each.weak_type for each in got] == [True, True, True, False, False]
    assert [each.dtype for each in got] == [each.dtype for each in value]
    with jax.enable_x64(True):
        assert same(reader(value[:4])[0], value[0])


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def jax_random_keys(impl, reader):
    value = jax.random.split(jax.random.key(7, impl=impl), 3)
    got = reader({"k": value, "old": jax.random.PRNGKey(3)})
    assert got["k"].dtype == value.dtype
    assert got["k"].shape == (3,)
    assert (jax.random.key_data(got["k"]) == jax.random.key_data(value)).all()
    assert jax.random.bits(got["k"][1]) == jax.random.bits(value[1])
    assert in_a_channel(jax.random.key_data(got["k"]))
    assert same(got["old"], jax.random.PRNGKey(3))


class State(NamedTuple):
    w: jax.Array
    steps: list


def jax_trees_and_another_structure(reader):
    got = reader({"s": State(jnp.ones(2), [jnp.zeros(1, jnp.int32), np.ones(2), 3])})["s"]
    assert type(got) is State
    assert same(got.w, jnp.ones(2))
    assert type(got.steps[1]) is np.ndarray
    assert same(reader((jnp.ones((2, 2)), None))[0], jnp.ones((2, 2)))
    assert same(reader(jnp.ones(5, jnp.bfloat16)), jnp.ones(5, jnp.bfloat16))


def jax_training_goes_on_from_a_snapshot(reader):
    optax = pytest.importorskip("optax")
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: ((p["w"].sum(0) + p["b"]) ** 2).sum())(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    here = step(params, optimizer.init(params))
    there = reader(here)
    assert jax.tree.structure(there) == jax.tree.structure(here)
    expected, found = step(*here), step(*there)
    assert step._cache_size() == 1  # no difference that would compile it again
    assert all(same(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))


def jax_frozen_dicts_of_flax(reader):
    FrozenDict = pytest.importorskip("flax.core").FrozenDict
    got = reader({"v": FrozenDict({"params": {"w": jnp.ones(2)}})})["v"]
    assert type(got) is FrozenDict
    assert same(got["params"]["w"], jnp.ones(2))


def jax_a_tracer_cannot_be_shared(publisher):
    for transform in (jax.jit, jax.vmap, jax.grad):
        with pytest.raises(UnsupportedTypeError, match=r"^a: a tracer.*inside jit"):
            transform(lambda x: publisher.update({"a": x}) * x)(jnp.ones(2) if transform is jax.vmap else 1.0)


def jax_a_deleted_array_cannot_be_shared(publisher):
    value = jnp.ones(2)
    jax.jit(lambda x: x + 1, donate_argnums=0)(value)
    with pytest.raises(UnsupportedTypeError, match=r"^a: an array that was deleted.*donating"):
        publisher.update({"a": value})


def jax_first_read_inside_jit(reader, publisher):
    publisher.update({"a": jnp.arange(3.0), "k": jax.random.key(1)})
    snapshot = publisher.subscriber().snapshot()
    assert jax.jit(lambda x: (snapshot.value["a"] * x).sum())(2.0) == 6
    assert same(snapshot.value["a"], jnp.arange(3.0))
    assert jax.random.bits(snapshot.value["k"]) == jax.random.bits(jax.random.key(1))


def jax_donating_a_readers_array_changes_nothing(publisher):
    publisher.update({"a": jnp.zeros(5000)})
    with publisher.subscriber() as subscriber:
        first = subscriber.snapshot().value["a"]
        added = jax.jit(lambda x: x.at[:].add(1), donate_argnums=0)(first)
        assert first.is_deleted()
        assert added.tolist() == [1] * 5000
        assert not subscriber.snapshot().value["a"].any()


def jax_another_librarys_writes_stay_in_this_process(publisher):
    torch = pytest.importorskip("torch")
    publisher.update({"a": jnp.zeros(5000)})
    with publisher.subscriber() as subscriber, publisher.subscriber() as other:
        tensor = torch.from_dlpack(subscriber.snapshot().value["a"])
        tensor.add_(1)
        assert tensor.tolist() == [1] * 5000
        assert not other.snapshot().value["a"].any()


def jax_a_version_is_let_go_of_by_the_next_one(publisher):
    with publisher.subscriber() as subscriber:
        for _ in range(10):
            publisher.update({"a": jnp.zeros(5000)})
            float(subscriber.snapshot().value["a"][0] + 1)
            assert sum(len(info.versions) for info in publisher.readers()) <= 2


def jax_an_array_outlives_all_else():
    with untorn.publish({"a": jnp.arange(1000.0)}) as publisher, publisher.subscriber() as subscriber:
        with subscriber.snapshot() as snapshot:
            kept = snapshot.value["a"]
        for _ in range(6):
            publisher.update({"a": jnp.zeros(1000)})
    assert in_a_channel(kept)
    assert kept.tolist() == list(range(1000))


def jax_edit(publisher):
    publisher.update({"w": jnp.zeros(4), "h": jnp.zeros(4, jnp.bfloat16), "n": np.zeros(2)})
    with publisher.edit() as params:
        old, half = params["w"], params["h"]
        params["w"] = params["w"] + 1
        params["h"] = params["h"].at[0].set(2)
        params["n"] += 1
    assert old.tolist() == [0] * 4  # a JAX array never changes
    assert half.tolist() == [0] * 4
    got = publisher.subscriber().snapshot().value
    assert same(got["w"], jnp.ones(4))
    assert got["h"].tolist() == [2, 0, 0, 0]
    assert got["n"].tolist() == [1, 1]
    with publisher.edit() as params:
        params["n"] += 1
    assert same(publisher.subscriber().snapshot().value["w"], jnp.ones(4))


def jax_edit_of_some_leaves(publisher):
    publisher.update({"w": jnp.ones(4), "h": jnp.zeros(4, jnp.bfloat16), "n": np.zeros(2)})
    with publisher.edit(leaves=["n", "h"]) as params:
        params["n"] += 1
        params["h"] = params["h"] + 1
    got = publisher.subscriber().snapshot().value
    assert got["h"].tolist() == [1] * 4
    assert same(got["w"], jnp.ones(4))


def jax_an_edit_of_other_leaves_may_not_replace_an_array(publisher):
    publisher.update({"w": jnp.ones(4), "n": np.zeros(2)})
    with pytest.raises(ValueError, match="was changed, but was not named"), publisher.edit(leaves=["n"]) as params:
        params["w"] = params["w"] + 1
    assert publisher.version == 2
    assert same(publisher.subscriber().snapshot().value["w"], jnp.ones(4))


def jax_patch(publisher):
    publisher.update({"w": jnp.zeros(4), "b": jnp.zeros(2)})
    publisher.patch({"b": jnp.ones(2)})
    publisher.patch({"w": jnp.ones((2, 2), jnp.bfloat16)})
    got = publisher.subscriber().snapshot().value
    assert same(got["b"], jnp.ones(2))
    assert same(got["w"], jnp.ones((2, 2), jnp.bfloat16))


@pytest.mark.parametrize("other", [b'"bfloat99"', b'"version"', b'"float64"'])
def jax_a_dtype_that_is_none(other):
    schema, payload = pack({"a": jnp.ones(3, jnp.bfloat16)})
    with pytest.raises(FormatError, match=r"^a: a jax\.Array cannot be put together"):
        Decoder(schema.replace(b'"bfloat16"', other), len(payload), payload=0).value(payload)


@pytest.mark.parametrize("value", [np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3).T, ml_dtypes.float8_e5m2(2)])
def jax_ml_dtypes_apart_and_together(value):
    from untorn.adapters.ml_dtypes import ADAPTERS

    (adapter,) = ADAPTERS
    assert adapter.matches(value.dtype.type)
    meta, parts = adapter.take_apart(value)
    again = adapter.put_together(list(meta), parts)
    assert type(again) is type(value)
    assert again.dtype == value.dtype
    assert (again == value).all()
    if value.ndim:
        assert again.ctypes.data == value.ctypes.data
        assert again.strides == value.strides


def several_devices(pipe, subscriber):
    jax.config.update("jax_num_cpu_devices", 2)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    keys = jax.random.split(jax.random.key(0), 2)
    for value in (jax.device_put(jnp.arange(4.0), sharding), jax.device_put(keys, sharding)):
        with pytest.raises(UnsupportedTypeError, match=r"^a: an array on 2 devices.*jax\.device_get"):
            untorn.publish({"a": value})
    second = jax.device_put(jnp.arange(2.0), jax.devices()[1])
    with untorn.publish(second) as publisher:
        assert same(publisher.subscriber().snapshot().value, second)
    snapshot = subscriber.snapshot()
    pipe.put((snapshot.value["a"].tolist(), in_a_channel(snapshot.value["a"])))
    pipe.get()


def jax_another_process_reads_and_is_killed(publisher):
    value = {"a": jnp.arange(4, dtype=jnp.bfloat16)}
    publisher.update(value)
    with start(several_devices, publisher.subscriber(), method="spawn") as child:
        assert child.get() == ([0, 1, 2, 3], True)
        child.kill()
    for _ in range(6):
        publisher.update(value)
    assert same(publisher.subscriber().snapshot().value["a"], value["a"])


LAZY = """
import sys, untorn
reader = untorn.subscribe(sys.argv[1])
assert reader.snapshot().value == {"n": 1}
assert "jax" not in sys.modules
print("ready", flush=True)
sys.stdin.readline()
assert reader.snapshot().value["a"].tolist() == [1, 1]
assert "jax" in sys.modules
"""


def jax_is_imported_when_an_array_is_read(name):
    with untorn.publish({"n": 1}, name=name) as publisher:
        command = [sys.executable, "-c", LAZY, name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout.readline() == "ready\n"
            publisher.update({"a": jnp.ones(2)})
            child.communicate("go\n")
        assert child.returncode == 0
        publisher.unlink()


def jax_nothing_stays_mapped():
    with untorn.publish({"a": jnp.ones(4)}) as publisher, publisher.subscriber() as subscriber:
        value = subscriber.snapshot().value
        assert sum("memfd" in line for line in untorn_mappings()) > 1
        del value
