"""TorchModel of a function that makes the module: it is made where it runs, and never copied."""

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from torch import nn

from untorn import SGD, Trainer
from untorn.torch import TorchModel

X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int64)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.hidden = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 8))
        self.norm = nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        return self.out(torch.relu(self.norm(self.hidden(x))))


class Stubborn(Net):
    """It cannot be copied, nor pickled."""

    def __deepcopy__(self, memo):
        raise TypeError("no copies")

    def __reduce__(self):
        raise TypeError("no pickles")


def scripted():
    torch.manual_seed(7)
    return torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)))


def trained(module, **how):
    with Trainer(TorchModel(module, nn.CrossEntropyLoss()), optimizer=SGD(0.1), shards=2, **how) as trainer:
        trainer.fit((X, Y), epochs=2, batch_size=16)
        made, params = trainer.module(), trainer.params
        made.eval()
        assert np.allclose(made(torch.from_numpy(X)).detach().numpy(), trainer.predict(X), atol=1e-6)
        assert trainer.evaluate((X, Y))["loss"] < 1
    return params


def test_it_equals_the_module_that_it_makes():
    expected, found = trained(Net(), engine="serial"), trained(Net, engine="serial")
    assert all((expected[name] == found[name]).all() for name in expected) and expected.keys() == found.keys()


def test_none_is_copied_or_pickled():
    expected, found = trained(Stubborn, engine="serial"), trained(Stubborn, workers=2)
    assert all((expected[name] == found[name]).all() for name in expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripted_modules():
    assert trained(scripted, engine="serial").keys() == dict(scripted().named_parameters()).keys()


def test_the_random_numbers_of_this_process_stay():
    model = TorchModel(Net, nn.CrossEntropyLoss())
    with Trainer(model, optimizer=SGD(0.1), engine="serial", shards=1) as trainer:
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        trainer.fit((X, Y), epochs=1, batch_size=16)
        trainer.module()
        assert torch.rand(1) == expected


def test_what_is_refused():
    with pytest.raises(TypeError, match=r"a function that makes a torch.nn.Module, found one that makes a int"):
        TorchModel(lambda: 3, nn.CrossEntropyLoss())
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, or a function that makes one, found int"):
        TorchModel(3, nn.CrossEntropyLoss())
    sizes = iter((8, 9))

    def unlike():
        count = next(sizes) - 7
        return nn.Sequential(*(nn.Linear(4, 4) for _ in range(count)))

    with pytest.raises(ValueError, match=r"not alike: they differ in 1\.bias, 1\.weight"):
        TorchModel(unlike, nn.CrossEntropyLoss()).replica(1)
