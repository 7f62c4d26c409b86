"""The public names are frozen: a change here is a change for every user, and belongs into CHANGELOG.md."""

import importlib
import inspect

import pytest

import untorn
import untorn.typing
from untorn import errors, share, train

NAMES = """
    Adagrad Adam AdamW BrokenChannelError BusyError Callback CapacityError ChannelNotFoundError ClosedError
    CSVLogger EarlyStopping EmptyError Examples FormatError FrozenDict FullError History Item LearningRateScheduler
    LocalSteps MLflow ModelCheckpoint NonFiniteLossError ProgressBar Publisher Queue QueueProcess ReaderInfo
    ReduceLROnPlateau RMSprop SGD Snapshot Subscriber TensorBoard TerminateOnNaN TorchSchedule Trainer Turns
    UnsupportedTypeError UntornError WandB WorkerError publish queue subscribe
"""

TYPES = """
    Answer Dataset EngineName GradientTransformation Logs LossAndGrad LossAndGradWithRng LossModel Mode ModelLike
    OptimizerLike TorchOptimizer
"""

MEMBERS = {
    "Publisher": "close edit name nbytes patch readers subscriber unlink update version",
    "Subscriber": "address attach cached close follow name publisher_alive snapshot snapshot_async version wait "
    "wait_async",
    "Snapshot": "close nbytes published_at value version",
    "ReaderInfo": "age_s pid versions",
    "Queue": "cancel_join_thread capacity close closed empty full get get_async get_many get_nowait join_thread leave "
    "name nbytes processes put put_async put_many put_nowait qsize reserve take take_async unlink",
    "Item": "finish give_back nbytes put_at value",
    "QueueProcess": "held nbytes pid taken waits_for writing",
    "FrozenDict": "get items keys nbytes of_parts parts values",
}

SIGNATURES = {
    "publish": "(value, *, name=None, directory=None, slots=4, max_slots=64, max_readers=256, durable=False, "
    "allow_pickle=False, keep=True, fixed=False)",
    "subscribe": "(channel=None, *, name=None, directory=None, timeout_s=0, live=False, allow_pickle=False)",
    "queue": "(capacity=1000, *, nbytes=1073741824, name=None, directory=None, max_processes=256, allow_pickle=False)",
    "Queue.put": "(self, value, block=True, timeout=None, *, timeout_s=None)",
    "Queue.get": "(self, block=True, timeout=None, *, timeout_s=None, copy=False)",
    "Queue.take": "(self, block=True, timeout=None, *, timeout_s=None, on_error='return')",
    "Queue.reserve": "(self, like, *, timeout_s=None)",
    "Publisher.update": "(self, value, *, timeout_s=5.0)",
    "Publisher.edit": "(self, *, copy=True, leaves=None, timeout_s=5.0)",
    "Publisher.patch": "(self, changes, *, timeout_s=5.0)",
    "Publisher.subscriber": "(self, *, allow_pickle=False)",
    "Subscriber.snapshot": "(self, *, newer_than=None, timeout_s=None)",
    "Subscriber.follow": "(self, *, timeout_s=None)",
    "Subscriber.cached": "(self, build)",
    "Subscriber.wait": "(self, newer_than, timeout_s=None)",
    "Subscriber.wait_async": "(self, newer_than, timeout_s=None)",
    "Subscriber.snapshot_async": "(self, *, newer_than=None, timeout_s=None)",
}


def test_exports():
    assert sorted(untorn.__all__) == sorted(NAMES.split())
    assert set(untorn.__all__) <= set(dir(untorn))


def test_exports_for_annotations():
    assert sorted(untorn.typing.__all__) == sorted(TYPES.split())


def test_the_layers_export_these_names():
    assert sorted([*errors.__all__, *share.__all__, *train.__all__]) == sorted(untorn.__all__)


@pytest.mark.parametrize("cls", MEMBERS)
def test_members(cls):
    owner = getattr(untorn, cls)
    public = {name for name in dir(owner) if not name.startswith("_")} | set(getattr(owner, "__annotations__", ()))
    assert sorted(public) == sorted(MEMBERS[cls].split())


@pytest.mark.parametrize("function", SIGNATURES)
def test_signatures(function):
    found = untorn
    for part in function.split("."):
        found = getattr(found, part)
    signature = inspect.signature(found)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == SIGNATURES[function]


@pytest.mark.parametrize("name", NAMES.split())
def test_every_public_name_is_documented(name):
    assert inspect.getdoc(getattr(untorn, name))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        untorn.nothing  # noqa: B018 (the look is the test)


def test_names_of_ray():
    pytest.importorskip("ray")
    ray = importlib.import_module("untorn.ray")
    assert sorted(ray.__all__) == ["Mirror", "RayCluster", "mirror"]
    members = [member for member in dir(ray.Mirror) if not member.startswith("_")]
    assert members == ["close", "problems", "versions", "wait"]
    parameters = inspect.signature(ray.mirror).parameters.values()
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    assert str(inspect.Signature(bare)) == (
        "(channel, *, name=None, max_readers=256, max_slots=64, slots=4, ray_options=None)"
    )
