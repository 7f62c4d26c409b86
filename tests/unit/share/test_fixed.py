"""publish(..., fixed=True) refuses versions of another structure, and nothing else."""

import numpy as np
import pytest

import untorn


@pytest.fixture
def weights():
    first = {"w": np.zeros(3), "head": {"b": np.zeros(2, "f4")}, "step": 1, "name": "a", "tags": {"x"}, "none": None}
    with untorn.publish(first, fixed=True) as publisher:
        yield publisher


REFUSED = [
    ({"w": "hello"}, "w: expected an array of float64 and shape (3,), found a str"),
    ({"w": np.zeros(4)}, "w: expected an array of float64 and shape (3,), found an array of float64 and shape (4,)"),
    ({"w": np.zeros(3, "f4")}, "found an array of float32"),
    ({"head/b": 1.0}, "head/b: expected an array of float32 and shape (2,), found a float"),
    ({"head": {"c": 1}}, "head: expected a dict of 'b', found a dict of 'c'"),
    ({"step": 1.5}, "step: expected an int, found a float"),
    ({"step": True}, "step: expected an int, found a bool"),
    ({"none": 1}, "none: expected None, found an int"),
    ({"tags": ["x"]}, "tags: expected a python.set, found a list of 1"),
]


@pytest.mark.parametrize(("changes", "text"), REFUSED)
def test_another_structure_is_refused(weights, changes, text):
    with pytest.raises(ValueError, match=r"fixed=True.*Nothing was published") as caught:
        weights.patch(changes)
    assert text in str(caught.value)
    assert weights.version == 1


def test_update_and_edit_refuse_it_too(weights):
    with pytest.raises(ValueError, match="w: expected"), weights.edit() as tree:
        tree["w"] = "hello"
    with pytest.raises(ValueError, match=r"value itself.*expected a dict of .*found a dict of 'w'"):
        weights.update({"w": np.zeros(3)})
    assert weights.version == 1


def test_what_may_change(weights):
    weights.patch({"name": "a longer name", "step": 2**80, "tags": {"x", "y", 3}, "w": np.ones(3)})
    weights.patch({"w": np.ones((3, 2))[:, 0]})
    with weights.edit() as tree:
        tree["name"] = "b"
        tree["w"] += 1
    value = weights.subscriber().snapshot().value
    weights.update(dict(reversed(value.items())))
    assert weights.version == 5 and value["name"] == "b" and value["w"].tolist() == [2, 2, 2]


def test_without_fixed_anything_goes():
    with untorn.publish({"w": np.zeros(3)}) as publisher:
        assert publisher.patch({"w": "hello"}) == 2


def test_a_publisher_that_takes_over_begins_anew(name):
    with untorn.publish(1, name=name, fixed=True):
        pass
    with (
        untorn.publish("text", name=name, fixed=True, keep=False) as publisher,
        pytest.raises(ValueError, match="fixed"),
    ):
        publisher.update(1)


def test_tensors():
    torch = pytest.importorskip("torch")
    with untorn.publish({"w": torch.zeros(3)}, fixed=True) as publisher:
        publisher.patch({"w": torch.ones(3)})
        for other in (torch.zeros(4), torch.zeros(3, dtype=torch.float64), np.zeros(3, "f4")):
            with pytest.raises(ValueError, match=r"w: expected a torch.* over an array of float32 and shape"):
                publisher.patch({"w": other})
