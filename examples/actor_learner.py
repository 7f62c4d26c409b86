"""Learn to balance a pole: actors step environments with the newest policy, a learner trains on what they send.

    learner:  publish policy ─> channel ─> actors:  step CartPole with the newest version
       ^                                     │
       └──────────── queue <── trajectory, with the version of the policy that made it

An actor does not wait for the learner, so a trajectory may come from an older policy: its *lag* is the number of
versions in between. The learner is an actor-critic with generalised advantage estimates (Schulman et al., 2016), and
weighs each step by the ratio of the new to the old policy, clipped as in PPO (Schulman et al., 2017). Actors are killed
at random, and replaced. Needs PyTorch and gymnasium (``pip install untorn[rl]``). Usage:

    python examples/actor_learner.py --actors 2 --plot lag.png
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import signal
import time
from collections import Counter, deque

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the actors are the parallelism

import numpy as np

import untorn

ENVIRONMENTS, STEPS = 4, 32  # of one trajectory
TRAJECTORIES = 2  # of one update
GAMMA, LAMBDA, CLIP, EPOCHS, LEARNING_RATE = 0.98, 0.8, 0.2, 20, 1e-3
HIDDEN = 64


def new_policy(rng):
    """Return the weights of an actor and a critic with two hidden layers each."""

    def net(outputs, last):
        sizes = [(4, HIDDEN, 1.0), (HIDDEN, HIDDEN, 1.0), (HIDDEN, outputs, last)]
        return [(rng.normal(0, gain / np.sqrt(n), (n, m)).astype("f4"), np.zeros(m, "f4")) for n, m, gain in sizes]

    return {"actor": net(2, 0.01), "critic": net(1, 1.0)}


def forward(net, x):
    for weights, bias in net[:-1]:
        x = np.tanh(x @ weights + bias)
    return x @ net[-1][0] + net[-1][1]


def act(policy, observations, rng):
    """Return an action for each observation, and the logarithm of its probability."""
    scores = forward(policy["actor"], observations)
    scores = scores - np.logaddexp(scores[:, :1], scores[:, 1:])
    actions = (rng.random(len(scores)) < np.exp(scores[:, 1])).astype("i8")
    return actions, scores[np.arange(len(scores)), actions]


def actor(weights, trajectories, seed):
    """Step environments with the newest policy, and put trajectories until the queue is closed."""
    import gymnasium

    rng = np.random.default_rng(seed)
    environments = [gymnasium.make("CartPole-v1", disable_env_checker=True) for _ in range(ENVIRONMENTS)]
    now = np.stack([each.reset(seed=int(rng.integers(2**31)))[0] for each in environments])
    lengths = np.zeros(ENVIRONMENTS)
    with contextlib.suppress(untorn.ClosedError):
        while True:
            with weights.snapshot() as snapshot:
                version, policy = snapshot.version, snapshot.value
                made = {
                    "version": version,
                    "observations": np.empty((STEPS, ENVIRONMENTS, 4), "f4"),
                    "actions": np.empty((STEPS, ENVIRONMENTS), "i8"),
                    "log_probabilities": np.empty((STEPS, ENVIRONMENTS), "f4"),
                    "rewards": np.ones((STEPS, ENVIRONMENTS), "f4"),
                    "ends": np.zeros((STEPS, ENVIRONMENTS), "f4"),
                    "returns": [],
                }
                for step in range(STEPS):
                    actions, log_probabilities = act(policy, now, rng)
                    made["observations"][step] = now
                    made["actions"][step] = actions
                    made["log_probabilities"][step] = log_probabilities
                    for index, each in enumerate(environments):
                        now[index], _, fell, late, _ = each.step(int(actions[index]))
                        lengths[index] += 1
                        if late and not fell:  # the episode would go on
                            made["rewards"][step, index] += GAMMA * forward(policy["critic"], now[index])[0]
                        if fell or late:
                            made["ends"][step, index] = 1
                            made["returns"].append(lengths[index])
                            lengths[index] = 0
                            now[index] = each.reset()[0]
                made["next_observation"] = now
                made["returns"] = np.array(made["returns"])
            trajectories.put(made)


class Learner:
    """The policy in PyTorch, and its optimizer."""

    def __init__(self, policy):
        import torch

        self.torch = torch
        torch.set_num_threads(1)
        self.nets = {
            name: [tuple(torch.tensor(each, requires_grad=True) for each in layer) for layer in net]
            for name, net in policy.items()
        }
        parameters = [each for net in self.nets.values() for layer in net for each in layer]
        self.optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
        self.parameters = parameters

    def policy(self):
        """Return the weights as NumPy arrays that share memory with the parameters."""
        return {
            name: [tuple(each.detach().numpy() for each in layer) for layer in net] for name, net in self.nets.items()
        }

    def _forward(self, net, x):
        for weights, bias in net[:-1]:
            x = self.torch.tanh(x @ weights + bias)
        return x @ net[-1][0] + net[-1][1]

    def learn(self, batch, left):
        """Make one update from these trajectories; ``left`` is the share of the training that is left."""
        torch = self.torch
        stack = {
            key: torch.tensor(np.concatenate([each[key] for each in batch], axis=1))
            for key in ("observations", "actions", "log_probabilities", "rewards", "ends")
        }
        last = torch.tensor(np.concatenate([each["next_observation"] for each in batch]), dtype=torch.float32)
        with torch.no_grad():
            values = self._forward(self.nets["critic"], stack["observations"])[..., 0]
            following = torch.cat([values[1:], self._forward(self.nets["critic"], last)[None, :, 0]])
            goes_on = 1 - stack["ends"]
            errors = stack["rewards"] + GAMMA * following * goes_on - values
            advantages, sum_ = torch.empty_like(errors), torch.zeros(errors.shape[1])
            for step in reversed(range(len(errors))):
                sum_ = errors[step] + GAMMA * LAMBDA * goes_on[step] * sum_
                advantages[step] = sum_
            targets = advantages + values
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * left
        for _ in range(EPOCHS):
            scores = self._forward(self.nets["actor"], stack["observations"]).log_softmax(-1)
            chosen = scores.gather(-1, stack["actions"][..., None])[..., 0]
            ratio = (chosen - stack["log_probabilities"]).exp()  # the importance weight of a step of an older policy
            clipped = ratio.clamp(1 - CLIP * left, 1 + CLIP * left)
            gain = torch.minimum(ratio * advantages, clipped * advantages).mean()
            error = (self._forward(self.nets["critic"], stack["observations"])[..., 0] - targets).square().mean()
            self.optimizer.zero_grad()
            (0.5 * error - gain).backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 0.5)
            self.optimizer.step()


def train(*, actors, updates, seed, kills, report):
    """Train; return the mean return of the last 100 episodes, and the lags of all trajectories."""
    rng = np.random.default_rng(seed)
    first = new_policy(rng)
    lags, returns = [], deque(maxlen=100)
    with untorn.publish(first) as weights, untorn.queue(2 * TRAJECTORIES, nbytes=16 << 20) as trajectories:

        def new_actor():
            process = multiprocessing.Process(
                target=actor, args=(weights.subscriber(), trajectories, int(rng.integers(2**31))), daemon=True
            )
            process.start()
            return process

        processes = [new_actor() for _ in range(actors)]
        learner = Learner(first)
        kill_at = set(rng.choice(np.arange(1, updates), min(kills, updates - 1), replace=False).tolist())
        for update in range(updates):
            batch = [trajectories.get(timeout_s=60) for _ in range(TRAJECTORIES)]
            lags += [weights.version - each["version"] for each in batch]
            for each in batch:
                returns.extend(each["returns"])
            learner.learn(batch, left=1 - update / updates)
            del batch, each  # their memory is for the next trajectories
            weights.update(learner.policy())
            if update in kill_at:
                victim = int(rng.integers(actors))
                os.kill(processes[victim].pid, signal.SIGKILL)
                processes[victim].join()
                processes[victim] = new_actor()
            report(update, np.mean(returns) if returns else 0.0)
        trajectories.close()
        for process in processes:
            process.join()
    return float(np.mean(returns)), lags


def show_lags(lags, plot):
    counts = Counter(lags)
    for lag in sorted(counts):
        print(f"lag {lag:2}  {counts[lag] / len(lags):6.1%}  {'*' * round(50 * counts[lag] / len(lags))}")
    if plot:
        import matplotlib.pyplot as plt

        figure, (over_time, histogram) = plt.subplots(1, 2, figsize=(9, 3))
        over_time.plot(lags, ".", markersize=2)
        over_time.set(xlabel="trajectory", ylabel="lag (versions)")
        histogram.hist(lags, bins=np.arange(max(lags) + 2) - 0.5)
        histogram.set(xlabel="lag (versions)", ylabel="trajectories")
        figure.tight_layout()
        figure.savefig(plot)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=5, help="how many actors are killed")
    parser.add_argument("--plot", metavar="FILE", help="draw the lags to this file (needs matplotlib)")
    options = parser.parse_args()

    begin = time.perf_counter()

    def report(update, mean):
        if update % 25 == 24:
            print(f"update {update + 1:4}   mean return {mean:6.1f}   {time.perf_counter() - begin:5.1f} s", flush=True)

    mean, lags = train(
        actors=options.actors, updates=options.updates, seed=options.seed, kills=options.kills, report=report
    )
    show_lags(lags, options.plot)
    print(
        f"mean return of the last 100 episodes {mean:.1f}, {options.kills} actors killed, mean lag {np.mean(lags):.2f}"
    )


if __name__ == "__main__":
    main()
