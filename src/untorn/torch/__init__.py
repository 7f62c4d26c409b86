"""PyTorch modules as models of a Trainer.

::

    Trainer(TorchModel(module, nn.CrossEntropyLoss()), optimizer=SGD(0.1), workers=4)

    version (shared memory) ── parameters: read where they lie ──> module.forward, loss, backward ──> gradients
                            └─ buffers: copied ─────────────────>        changes them           ──> new values

What is published is one dict of arrays with the names of the state_dict: parameters that are not trained, buffers
(those that are not persistent too), parameters that are trained. Tied parameters are there once, under their first
name.

A buffer that forward changes, such as BatchNorm's running mean, starts in each shard from the version's value, and the
next version has the mean over the shards, weighted by their examples; an element that every shard left with the same
bits keeps these bits. Buffers that are not float32, float64 or complex (a counter, a mask) take the value of the first
shard: a counter counts up once per step.

Gradients: ``.grad`` is None before backward, and what backward leaves there is copied into the gradient buffer once.
With a ``.grad`` over that buffer, autograd adds to it in place, so it must be zeroed, read and written: more traffic.
"""

from untorn.torch.model import TorchModel

__all__ = ["TorchModel"]
