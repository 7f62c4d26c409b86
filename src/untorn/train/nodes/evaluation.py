"""How the nodes evaluate: each takes some chunks after others from what is left, and sends the answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from untorn.train.nodes.jobs import NodeEvaluation
from untorn.train.nodes.members import LostError, Member, named
from untorn.train.nodes.sending import send_data
from untorn.train.run.chunks import Answer

__all__ = ["evaluate_on"]

#: the chunks that a node evaluates at a time, for each of its workers
_CHUNKS_PER_WORKER = 4


async def evaluate_on(member: Member, work: NodeEvaluation, put: Callable[[tuple[int, Answer]], None]) -> None:
    """Have one node evaluate chunks, until none is left or the node is lost. What it had taken is then left again."""
    taken: list[int] = []
    try:
        await send_data(member, work.key, work.read, work.raw)
        while work.chunks:
            count = _CHUNKS_PER_WORKER * max(1, member.workers)
            taken, work.chunks[:] = work.chunks[:count], work.chunks[count:]
            message = {"do": "evaluate", "evaluation": work.evaluation, "key": work.key, "chunks": taken}
            answer, blobs = await member.ask(message | {"position": work.position})
            for chunk, measured, payload in zip(answer["chunks"], blobs[::2], blobs[1::2], strict=True):
                taken.remove(chunk)
                put((chunk, Answer(answer["names"], np.frombuffer(measured), payload)))
            if taken:  # it has other weights
                return
    except LostError:
        pass
    except Exception as error:
        raise named(error, member) from error
    finally:
        work.chunks.extend(taken)
