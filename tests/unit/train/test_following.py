"""Following the training of a TorchModel through its channel."""

import gc
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import untorn
from untorn import SGD, LocalSteps, Trainer
from untorn.share.lowlevel import copy_value, copy_with_extra, private_value, read_value

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from untorn.torch import TorchModel, loader  # noqa: E402

X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int64)


class Net(nn.Module):
    """With a tied parameter, a frozen one, and a buffer that is not persistent."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.b.bias.requires_grad_(False)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("scale", torch.full((4,), 2.0), persistent=False)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.norm(self.b(torch.relu(self.a(x))) * self.scale))


def plain():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def fitted(make=plain, **settings):
    torch.manual_seed(0)
    settings = {"optimizer": SGD(0.1), "engine": "serial", "shards": 2} | settings
    trainer = Trainer(TorchModel(make(), nn.CrossEntropyLoss()), **settings)
    trainer.fit((X, Y), epochs=1, batch_size=16)
    return trainer


SETTINGS = {
    "fused": {},
    "torch.optim": {"optimizer": partial(torch.optim.NAdam, lr=0.01)},
    "workers": {"engine": "processes", "workers": 2},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_state_dict_is_what_a_follower_reads(settings):
    with fitted(**settings) as trainer:
        value, params = trainer.subscriber().snapshot().value, trainer.params
        assert all(type(tensor) is torch.Tensor for tensor in value.values())
        assert {name: tensor.numpy().tobytes() for name, tensor in value.items()} == {
            name: array.tobytes() for name, array in params.items()
        }
        for assign in (False, True):
            module = plain()
            assert str(module.load_state_dict(value, assign=assign)) == "<All keys matched successfully>"
            module.eval()
            with torch.no_grad():
                assert np.allclose(module(torch.from_numpy(X)).numpy(), trainer.predict(X), atol=1e-6)
        trainer.fit((X, Y), epochs=1, batch_size=16)
        assert not np.array_equal(trainer.subscriber().snapshot().value["0.weight"], value["0.weight"])


@pytest.mark.parametrize("make", [plain, Net])
def test_a_loader_takes_what_a_training_publishes(make):
    with fitted(make) as trainer:
        follower = trainer.subscriber()
        module = follower.cached(loader(make))
        assert not module.training
        with torch.no_grad():
            assert np.allclose(module(torch.from_numpy(X)).numpy(), trainer.predict(X), atol=1e-6)
        again = trainer.model.module(follower.snapshot().value)
        assert all(map(torch.equal, again.state_dict().values(), module.state_dict().values()))
        if make is Net:
            assert module.a.weight is module.b.weight
            with pytest.raises(RuntimeError, match=r"a.weight: the published shape is \(4, 4\), and .* \(5, 5\)"):
                follower.cached(loader(Wide))


class Wide(Net):
    def __init__(self):
        super().__init__()
        self.a.weight = self.b.weight = nn.Parameter(torch.zeros(5, 5))


def test_writes_stay_in_this_process():
    with fitted() as trainer:
        value = trainer.snapshot().value
        before = trainer.params, trainer.evaluate((X, Y)), trainer.predict(X[:3]).tolist()
        module = plain()
        module.load_state_dict(value, assign=True)
        optimizer = torch.optim.SGD(module.parameters(), 0.5)
        module(torch.from_numpy(X)).sum().backward()
        optimizer.step()
        value["2.bias"].fill_(7.0)
        assert module[2].bias.tolist() == [7.0, 7.0]
        assert all(np.array_equal(array, trainer.params[name]) for name, array in before[0].items())
        assert (trainer.evaluate((X, Y)), trainer.predict(X[:3]).tolist()) == before[1:]
        assert trainer.snapshot().value["2.bias"].tolist() == before[0]["2.bias"].tolist()


def test_tensors_outlive_everything():
    trainer = fitted(name="following-test")
    follower = untorn.subscribe("following-test")
    with follower.snapshot() as snapshot:
        value = snapshot.value
    wanted = trainer.params["0.weight"]
    follower.close()
    trainer.close()
    del follower, trainer, snapshot
    gc.collect()
    assert np.array_equal(value["0.weight"], wanted)
    value["0.weight"].add_(1.0)
    assert np.array_equal(value["0.weight"], wanted + 1)


def test_another_process_follows(tmp_path):
    program = f"""if True:
        import sys, torch, untorn
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from untorn.torch import loader
        import test_following
        module = untorn.subscribe("following-process", timeout_s=30).cached(loader(test_following.plain))
        with torch.no_grad():
            module[2].bias.zero_()
        print(module[0].weight.sum().item())
    """
    with fitted(name="following-process") as trainer:
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
        assert float(ran.stdout) == trainer.snapshot().value["0.weight"].sum().item()
        assert trainer.params["2.bias"].any()


def test_weights_are_set_and_saved_as_before(tmp_path):
    pytest.importorskip("safetensors")
    with fitted() as trainer:
        module = plain()
        trainer.params = module.state_dict()
        assert np.array_equal(trainer.params["0.weight"], module[0].weight.detach().numpy())
        trainer.params = trainer.snapshot().value
        trainer.fit((X, Y), epochs=1, batch_size=16)
        trainer.save(tmp_path / "a")
        wanted = trainer.params
        trainer.fit((X, Y), epochs=1, batch_size=16)
        trainer.load(tmp_path / "a")
        assert all(np.array_equal(array, trainer.params[name]) for name, array in wanted.items())
        trainer.fit((X, Y), epochs=1, batch_size=16)
        with pytest.raises(ValueError, match="the new weights lack"):
            trainer.params = {"0.weight": torch.zeros(4, 4)}


def test_local_steps_publish_tensors_too():
    with fitted(optimizer=LocalSteps(SGD(0.1), steps=2), shards=None) as trainer:
        module = trainer.model.module(trainer.snapshot().value)
        assert np.array_equal(module[0].weight.detach(), trainer.params["0.weight"])


def test_arrays_in_place_of_tensors():
    value = {"w": torch.ones(2, requires_grad=True), "n": 3, "s": torch.eye(2).to_sparse()}
    with untorn.publish(value) as publisher, publisher.subscriber().snapshot() as snapshot:
        for read in (read_value, copy_value, private_value, lambda *a, **k: copy_with_extra(*a, **k)[0]):
            found = read(snapshot, arrays=True)
            assert type(found["w"]) is np.ndarray
            assert found["w"].tolist() == [1.0, 1.0]
            assert found["n"] == 3
            assert found["s"].is_sparse
            assert type(read(snapshot)["w"]) is torch.Tensor
        with pytest.raises(ValueError, match="read-only"):
            read_value(snapshot, arrays=True)["w"][0] = 2
