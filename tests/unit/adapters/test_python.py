"""Plain values of Python's library: what is refused, what a damaged schema says, and files that stay.

tests/conformance/test_values.py has one suite over every kind of them.
"""

import datetime as dt
import enum
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest

import untorn
from untorn.share.lowlevel import Decoder, Layout, flatten


class Colour(enum.Enum):
    RED = 1


class Other(enum.Enum):
    BLUE = 1


class Words(set):
    """A set with something of its own."""


class Zone(dt.tzinfo):
    def utcoffset(self, _):
        return dt.timedelta(0)


def local_enum():
    return enum.Enum("Local", "A B").A


REFUSED = [
    (Words({"a"}), "cannot share .*Words"),
    (dt.datetime(2026, 1, 1, tzinfo=Zone()), "Zone; expected a zoneinfo.ZoneInfo"),
    (defaultdict(lambda: 1), "default_factory is .*lambda"),
    (local_enum(), "Local cannot be imported by that name"),
    (deque([object()]), "items/0: cannot share builtins.object"),
    ({1, object}, "cannot share builtins.type"),
    (bytearray, "cannot share builtins.type"),
]


@pytest.mark.parametrize(("value", "text"), REFUSED)
def test_what_is_refused(value, text):
    with pytest.raises(untorn.UnsupportedTypeError, match=f"deep/0.*{text}"):
        untorn.publish({"deep": [value]})


def test_what_is_refused_can_still_be_pickled():
    value = [Words({"a"}), defaultdict(int, a=1)]
    with untorn.publish(value, allow_pickle=True) as publisher:
        got = publisher.subscriber(allow_pickle=True).snapshot().value
        assert type(got[0]) is Words and got == value


def test_equal_sets_have_equal_structures():
    specs = {flatten({f"a{n}": set(order), "b": frozenset(order)} | {})[0] for n, order in ((1, "abc"), (1, "cba"))}
    assert len(specs) == 1
    mixed = [{1, "a", None, (2,), frozenset({1, 2})}, {frozenset({2, 1}), (2,), None, "a", 1}]
    assert len({flatten(value)[0] for value in mixed}) == 1


def test_the_structure_of_large_sets_is_small():
    for value in (set(range(10_000)), set(map(str, range(10_000))), Counter(map(str, range(10_000)))):
        assert len(Layout(flatten(value)[0]).schema) < 500


def test_a_zone_that_this_machine_lacks(monkeypatch):
    import zoneinfo

    with untorn.publish(dt.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Paris"))) as publisher:
        reader = publisher.subscriber()

        def missing(key):
            raise zoneinfo.ZoneInfoNotFoundError(f"No time zone found with key {key}")

        monkeypatch.setattr(zoneinfo, "ZoneInfo", missing)
        with pytest.raises(untorn.FormatError, match="Europe/Paris"):
            _ = reader.snapshot().value


def _schema_of(value) -> bytes:
    return Layout(flatten(value)[0]).schema


DAMAGE = [
    (Colour.RED, b'"Colour"', b'"Colours"', "has not imported that enum"),
    (Colour.RED, b'"Colour"', b'"REFUSED"', "has not imported that enum"),
    (Colour.RED, b'"Colour"', b'"Other"', "has no member 'RED'"),
    (Colour.RED, b'"Colour"', b'"Words"', "is no enum"),
    ({"ab", "c"}, b'"text"', b'"what"', "cannot be put together"),
    (defaultdict(list), b'["list"]', b'["eval"]', "cannot be put together"),
    (deque([1], 2), b"[2]", b'["x"]', "cannot be put together"),
    (dt.date(2026, 1, 1), b'"day"', b'"way"', "cannot be put together"),
]


@pytest.mark.parametrize(("value", "old", "new", "text"), DAMAGE)
def test_damage(value, old, new, text):
    spec, leaves = flatten(value)
    layout = Layout(spec, payload=0)
    payload = bytearray(layout.nbytes)
    for index, leaf in enumerate(leaves):
        layout.write_leaf(payload, index, leaf)
    assert old in layout.schema
    decoder = Decoder(layout.schema.replace(old, new), len(payload), payload=0)
    with pytest.raises(untorn.FormatError, match=text):
        decoder.value(payload)


def test_lengths_that_do_not_fit():
    value = {"ab", "c"}
    spec, leaves = flatten(value)
    layout = Layout(spec, payload=0)
    for wrong in ([3, 2], [1, 2], [-1, 3], [2, 4]):
        payload = bytearray(layout.nbytes)
        layout.write_leaf(payload, 0, leaves[0])
        layout.write_leaf(payload, 1, np.array(wrong))
        with pytest.raises(untorn.FormatError, match="do not fit"):
            Decoder(layout.schema, len(payload), payload=0).value(payload)


def test_a_durable_file_is_read_by_another_process_without_pickle(tmp_path):
    value = {
        "at": dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC),
        "tags": {"a", "b"},
        "counts": Counter("hello"),
        "order": OrderedDict(b=1, a=2),
    }
    untorn.publish(value, name="stored", directory=tmp_path, durable=True).close()
    program = f"""
import sys, untorn, datetime, collections
before = set(sys.modules)
value = untorn.subscribe({str(tmp_path / "stored")!r}).snapshot().value
assert value == {value!r}, value
assert "pickle" not in set(sys.modules) - before
"""
    program = program.replace("Counter", "collections.Counter").replace("OrderedDict", "collections.OrderedDict")
    subprocess.run([sys.executable, "-c", program], check=True)


def test_importing_untorn_imports_none_of_these():
    program = "import sys, untorn; print([name for name in ('decimal', 'uuid', 'zoneinfo') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    program = program.replace("untorn", "numpy", 1)
    assert found == subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
