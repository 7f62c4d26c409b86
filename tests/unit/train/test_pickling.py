"""Methods that were set on an object, beside those of its class, are pickled too."""

from __future__ import annotations

import pickle
import types

import pytest

from untorn.train.models.pickling import pickled


class Base:
    def scale(self, x):
        return self.factor * x


class Model(Base):
    factor = 2

    def scale(self, x):
        return -1

    def other(self, x):
        return -2

    @classmethod
    def doubled(cls, x):
        return cls.factor * x


class UsesSuper(Model):
    def __init__(self) -> None:
        self.inherited = super(Model, self).scale


def scale(self, x):
    return self.factor * x


def add_a_method_of_the_name_that_the_class_has(model):
    model.scale = types.MethodType(scale, model)
    return model.scale


def add_a_lambda(model):
    model.scale = types.MethodType(lambda self, x: self.factor * x, model)
    return model.scale


def of_super(model):
    return UsesSuper().inherited


def of_the_class(model):
    return model.doubled


@pytest.mark.parametrize("method", [add_a_method_of_the_name_that_the_class_has, add_a_lambda, of_super, of_the_class])
def test_a_method_is_the_same_in_a_worker(method):
    sent = pickle.loads(pickled("model", method(Model()), otherwise="do not"))
    assert sent(21) == 42
    if not isinstance(sent.__self__, type):
        assert sent.__self__.factor == 2


def test_an_objects_own_method_replaces_that_of_its_class():
    model = Model()
    add_a_method_of_the_name_that_the_class_has(model)
    sent = pickle.loads(pickled("model", model, otherwise="do not"))
    assert (sent.scale(21), sent.other(0)) == (42, -2)
    assert sent.scale.__self__ is sent
