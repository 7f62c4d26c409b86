"""Workers find a job's board by the number of a descriptor, which another board may have by then."""

import numpy as np

from untorn import SGD, Callback, Trainer
from untorn.train.run.worker_process import WorkerProcess


def model(params, batch, rng):
    error = batch @ params["w"]
    return float(error @ error), {"w": 2 * batch.T @ error}


class Look(Callback):
    """Records the jobs that workers are sent, and lets a worker open one whose path leads to another board."""

    def __init__(self, trainer, told):
        self.trainer, self.told, self.begun = trainer, told, []

    def on_batch_end(self, batch, logs):
        payload = self.trainer._pool._engine._payload
        self.told.append(payload)
        for other in self.told[:-1]:
            if other["number"] != payload["number"]:
                misled = {**other, "board": payload["board"]}
                self.begun.append(WorkerProcess(0, None, None)._begin(1, misled))


def test_a_board_is_never_taken_for_another_trainers():
    data, told, begun = np.ones((4, 2)), [], []
    for _ in range(2):  # the first job of each, since nothing else tells them apart
        with Trainer(model, {"w": np.zeros(2)}, optimizer=SGD(0.1), workers=1) as trainer:
            look = Look(trainer, told)
            trainer.fit(data, epochs=1, batch_size=2, callbacks=[look])
            begun += look.begun
    assert len({payload["number"] for payload in told}) == 2 and all(payload["number"] for payload in told)
    assert begun and not any(begun)
