"""From PyTorch's DistributedDataParallel to a Trainer: the same weights from two ranks and from two workers.

``before`` and ``after`` do the same work: twenty steps of SGD, each on all 256 examples.
Usage: python examples/migrations/from_ddp.py
"""

import os
import socket
import sys

import torch
from torch import nn

from untorn import SGD, Trainer
from untorn.torch import TorchModel

RANKS, STEPS = 2, 20


def data():
    x = torch.randn(256, 3, generator=torch.Generator().manual_seed(0))
    return x, x @ torch.tensor([[1.0], [-2.0], [3.0]])


def module():
    net = nn.Linear(3, 1)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return net


def rank_of(rank, port, weights):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=RANKS)
    net = nn.parallel.DistributedDataParallel(module())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = (part[rank::RANKS] for part in data())  # what DistributedSampler does
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
    if rank == 0:
        weights.put(net.module.weight.detach().numpy().copy())
    torch.distributed.destroy_process_group()


def before():
    context = torch.multiprocessing.get_context("spawn")
    weights = context.SimpleQueue()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    processes = [context.Process(target=rank_of, args=(rank, port, weights)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    found = weights.get()
    for process in processes:
        process.join()
    return found.round(2).tolist()


def after():
    with Trainer(TorchModel(module(), nn.MSELoss()), optimizer=SGD(0.1), workers=2, shards=2) as trainer:
        trainer.fit(data(), batch_size=256, epochs=STEPS)
        return trainer.module().weight.detach().numpy().round(2).tolist()


if __name__ == "__main__":
    for half in sys.argv[1:] or ["before", "after"]:
        print(f"{half}:", globals()[half]())
