"""From TorchRL's shared-memory weight sync to a channel: an actor uses the newest policy of a learner.

``before`` and ``after`` do the same work. Usage: python examples/migrations/from_torchrl.py
"""

import multiprocessing
import sys

import torch
from torch import nn

import untorn
from untorn.torch import loader


def policy():
    net = nn.Linear(3, 1)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return net


def learn(net, number):
    with torch.no_grad():
        net.weight.fill_(number)


def act_before(scheme, turns, actions):
    net = policy()
    scheme.init_on_receiver(model_id="policy", model=net, worker_idx=0)
    scheme.connect(worker_idx=0)  # starts a thread, which writes to the parameters while the actor uses them
    while turns.get():
        with torch.no_grad():
            actions.put(net(torch.ones(3)).item())
    scheme.shutdown()


def before():
    from torchrl.weight_update import SharedMemWeightSyncScheme

    net, context = policy(), multiprocessing.get_context("fork")
    scheme = SharedMemWeightSyncScheme(strategy="state_dict")
    scheme.init_on_sender(model_id="policy", model=net, devices=[torch.device("cpu")], num_workers=1)
    turns, actions = context.SimpleQueue(), context.SimpleQueue()
    actor = context.Process(target=act_before, args=(scheme, turns, actions))
    actor.start()
    scheme.connect()
    seen = []
    for number in (1, 2):
        learn(net, number)
        scheme.send()  # waits for the actor
        turns.put(True)
        seen.append(actions.get())
    turns.put(False)
    actor.join()
    scheme.shutdown()
    return seen


def act_after(weights, turns, actions):
    while turns.get():
        with torch.no_grad():
            actions.put(weights.cached(loader(policy))(torch.ones(3)).item())  # one whole version, by its number


def after():
    net, context = policy(), multiprocessing.get_context("fork")
    turns, actions = context.SimpleQueue(), context.SimpleQueue()
    seen = []
    with untorn.publish(net.state_dict()) as weights:
        actor = context.Process(target=act_after, args=(weights.subscriber(), turns, actions))
        actor.start()
        for number in (1, 2):
            learn(net, number)
            weights.update(net.state_dict())  # waits for nobody
            turns.put(True)
            seen.append(actions.get())
        turns.put(False)
        actor.join()
    return seen


if __name__ == "__main__":
    for half in sys.argv[1:] or ["before", "after"]:
        print(f"{half}:", globals()[half]())
