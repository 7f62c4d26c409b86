"""The data of a fit, of any kind, behind ``take(indices) -> batch``.

::

    given                                            Source          workers read
    arrays, tensors, tables; trees of them           ArraySource     one copy in shared memory
    arrays over a mapped file (.npy, memmap)         ArraySource     the file itself
    a Dataset, a DataLoader, Examples                ItemSource      the dataset, sent once; items in parallel
    a DataLoader with a sampler                      SampledSource   the same, in the sampler's order
    an iterable of batches                           Stream          windows of batches, each an ArraySource

A batch is always a tree of NumPy arrays, and the same indices give the same bits, so the weights do not depend on the
kind of data.
"""

from untorn.train.data.base import SharedData, Source, chunks
from untorn.train.data.items import Examples
from untorn.train.data.kinds import batch_size_of, batches_of, source_of
from untorn.train.data.sampled import SampledBatches
from untorn.train.data.stream import Stream, Window

__all__ = [
    "Examples",
    "SampledBatches",
    "SharedData",
    "Source",
    "Stream",
    "Window",
    "batch_size_of",
    "batches_of",
    "chunks",
    "source_of",
]
