"""What people give a TorchModel first: it works as in a plain loop, or the error says what to change."""

import io
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from untorn import SGD, Trainer
from untorn.errors import FormatError, WorkerError
from untorn.torch import TorchModel

X = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int64)


def trainer(module=None, loss=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TorchModel(module or nn.Linear(4, 2), loss or nn.CrossEntropyLoss())
    return Trainer(model, optimizer=SGD(0.1), engine="serial", shards=2)


def fitted(data, **options):
    with trainer(**options) as made:
        return made.fit(data, epochs=1, batch_size=8).history["loss"]


def asked(ask):
    with trainer() as made:
        return ask(made)


@pytest.mark.parametrize(
    ("use", "text"),
    [
        (lambda: fitted((X.astype(float), Y)), r"give x\.astype\(np\.float32\), or train in float64"),
        (lambda: fitted((X, Y), module=nn.Linear(4, 2).double()), r"module\.double\(\)"),
        (lambda: fitted((X[..., None].astype(float), Y), module=nn.Conv1d(4, 2, 1)), r"x\.astype\(np\.float32\)"),
        (lambda: fitted((X, Y.astype(np.int32))), r"give y\.astype\(np\.int64\)"),
        (lambda: fitted((X, Y.astype(np.float32))), r"give y\.astype\(np\.int64\)"),
        (lambda: fitted((X, Y[:, None])), r"give y\[:, 0\]"),
        (lambda: asked(lambda made: made.predict(X.tolist())), r"x\.astype\(np\.float32\)"),
        (lambda: asked(lambda made: made.predict(X.astype(float))), r"x\.astype\(np\.float32\)"),
        (lambda: asked(lambda made: made.predict((X, Y))), r"predict\(x\), without the targets"),
        (lambda: asked(lambda made: made.evaluate((X.astype(float), Y))), r"x\.astype\(np\.float32\)"),
        (lambda: asked(lambda made: made.step(X, Y)), r"trainer\.step\(\(x, y\)\)"),
        (lambda: TorchModel(nn.Linear(4, 2), "mse"), r"such as torch\.nn\.CrossEntropyLoss\(\), found str"),
        (lambda: TorchModel(nn.Linear(4, 2), nn.MSELoss(), metrics=["accuracy"]), r"such as \{'accuracy': lambda"),
    ],
)
def test_the_error_says_what_to_change(use, text):
    with pytest.raises((TypeError, RuntimeError, WorkerError)) as raised:
        use()
    told = "\n".join([str(raised.value), *getattr(raised.value, "__notes__", ())])
    assert re.search(text, told), told


def test_a_loader_has_a_batch_size():
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    with trainer() as made:
        made.fit(DataLoader(data, batch_size=4, shuffle=True), epochs=1)
        assert made.step == 4
        made.fit(DataLoader(data, batch_size=4), epochs=1, batch_size=8)
        assert made.step == 6


def test_a_file_of_torch_is_no_checkpoint(tmp_path):
    file = io.BytesIO()
    torch.save(nn.Linear(4, 2).state_dict(), file)
    (tmp_path / "weights.pt").write_bytes(file.getvalue())
    with trainer() as made, pytest.raises(FormatError, match=r"as torch\.save writes them.* trainer\.params = "):
        made.load(tmp_path / "weights.pt")
