"""Types of the values that pass through share's classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, assert_type

import numpy as np
from numpy.typing import NDArray

import untorn
from untorn import FrozenDict, Publisher, Snapshot, Subscriber, publish, subscribe


class Layers(TypedDict):
    body: NDArray[np.float32]
    head: NDArray[np.float32]


class Point(NamedTuple):
    x: float
    y: float


@dataclass
class Policy:
    weights: NDArray[np.float64]
    name: str


def writes(policy: Policy) -> int:
    publisher = publish(policy, name="policy", slots=2)
    assert_type(publisher, Publisher[Policy])
    assert_type(publisher.update(policy), int)
    assert_type(publisher.patch({"weights": np.ones(3)}), int)
    with publisher.edit() as draft:
        assert_type(draft, Policy)
        draft.weights += 1
        draft.wieghts  # refused
    publisher.update("another")  # refused
    publisher.update({"weights": policy.weights})  # refused
    with publisher as same:
        assert_type(same, Publisher[Policy])
    assert_type([reader.pid for reader in publisher.readers()], list[int])
    with publisher.edit(leaves=["weights"]) as draft:
        return len(draft.weights)  # a block that swallows nothing: no return is missing below


def reads(publisher: Publisher[Layers]) -> NDArray[np.float32]:
    reader = publisher.subscriber()
    assert_type(reader, Subscriber[Layers])
    assert_type(reader.snapshot(), Snapshot[Layers])
    assert_type(reader.wait(1, timeout_s=2), int)
    with reader.snapshot(newer_than=1) as snapshot:
        assert_type(snapshot.value, Layers)
        assert_type(snapshot.version, int)
        snapshot.value["tail"]  # refused
    for snapshot in reader:
        assert_type(snapshot, Snapshot[Layers])
    with reader as same:
        assert_type(same, Subscriber[Layers])
    reader.snapshot(newer_then=1)  # refused
    return reader.snapshot().value["head"]


async def reads_in_asyncio(reader: Subscriber[Point]) -> float:
    assert_type(await reader.wait_async(3), int)
    assert_type(await reader.snapshot_async(), Snapshot[Point])
    async for snapshot in reader:
        assert_type(snapshot, Snapshot[Point])
        return snapshot.value.x
    return 0.0


def subscribes(publisher: Publisher[Point], reader: Subscriber[Point]) -> None:
    assert_type(subscribe(publisher), Subscriber[Point])
    assert_type(subscribe(reader, allow_pickle=True), Subscriber[Point])
    assert_type(subscribe("policy", timeout_s=5), Subscriber[Any])
    told: Subscriber[Point] = subscribe("policy")  # the program must state the type behind a name
    assert_type(told.snapshot().value, Point)
    subscribe(3)  # refused
    subscribe(told.snapshot())  # refused


def passes_on(reader: Subscriber[bool]) -> Subscriber[int]:
    return reader  # readers of a narrower type are readers of a wider one


def does_not_pass_on(publisher: Publisher[bool]) -> Publisher[int]:
    return publisher  # refused


def publishes_another_shape() -> None:
    publisher: Publisher[NDArray[np.float64]] = publish(np.zeros(3))  # later versions: the program states it
    publisher.update(np.zeros((2, 2)))


def names_no_type(reader: Subscriber, publisher: Publisher, snapshot: Snapshot) -> None:
    assert_type(reader, Subscriber[Any])
    assert_type(publisher, Publisher[Any])
    assert_type(snapshot.value, Any)


def looks_up() -> None:
    ages = FrozenDict({"ada": 36, "alan": 41})
    assert_type(ages, FrozenDict[str, int])
    assert_type(ages["ada"], int)
    assert_type(ages.get("grace"), int | None)
    assert_type(list(ages.items()), list[tuple[str, int]])
    pairs: list[tuple[int, bytes]] = [(1, b"one")]
    assert_type(FrozenDict(pairs), FrozenDict[int, bytes])
    ages["ada"] = 37  # refused
    ages[3]  # refused
    with publish({"ages": ages}) as publisher:
        assert_type(publisher.subscriber().snapshot().value["ages"]["alan"], int)


def misspells() -> None:
    untorn.publsh([])  # refused
    untorn.publish([], slot=3)  # refused
