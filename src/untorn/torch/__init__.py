"""PyTorch modules as models of a Trainer.

::

    Trainer(TorchModel(module, nn.CrossEntropyLoss()), optimizer=SGD(0.1), workers=4)

    version (shared memory) ── parameters: read where they lie ──> module.forward, loss, backward ──> gradients
                            └─ buffers: copied ─────────────────>        changes them           ──> new values

A version is one dict of arrays with the names of the state_dict: parameters that are not trained, buffers (including
those that are not persistent), parameters that are trained. Tied parameters appear once, under their first name.

A buffer that forward changes, such as BatchNorm's running mean, starts in each shard from the version's value, and the
next version has the mean over the shards, weighted by their examples; an element that every shard left with the same
bits keeps these bits. Buffers that are not float32, float64 or complex (a counter, a mask) take the value of the first
shard: a counter counts up once per step.

``.grad`` is None before backward, and its value after backward is copied to the gradient buffer once. With a ``.grad``
over that buffer, autograd would add to it in place, which has to zero, read and write it.
"""

from untorn.torch.accelerated import Accelerated
from untorn.torch.loading import loader
from untorn.torch.model import TorchModel

__all__ = ["Accelerated", "TorchModel", "loader"]
