"""Estimators and modules through their doors: as plain values, without pickle."""

import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest

import untorn
from untorn import FormatError, UnsupportedTypeError

pytest.importorskip("sklearn")
from sklearn.base import BaseEstimator
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC

from untorn.sklearn import estimator_of, state_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(100, 4))
Y = (X.sum(1) > 0).astype(int)

ESTIMATORS = [
    LogisticRegression(),
    make_pipeline(StandardScaler(), SVC()),
    RandomForestClassifier(4, random_state=np.random.RandomState(1)),
    GradientBoostingClassifier(n_estimators=3),
    HistGradientBoostingClassifier(max_iter=3),
    KNeighborsClassifier(algorithm="kd_tree"),
    make_pipeline(FunctionTransformer(np.tanh), LogisticRegression()),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda each: type(each).__name__)
def test_estimators(estimator):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(X, Y)
    with untorn.publish(state_of(estimator), fixed=True) as publisher:
        made = publisher.subscriber().cached(estimator_of)
        assert type(made) is type(estimator) and made is not estimator
        assert np.array_equal(made.predict(X), estimator.predict(X))
        assert made.get_params().keys() == estimator.get_params().keys()


def test_another_process_reads_it_without_pickle(tmp_path):
    vectorizer = TfidfVectorizer().fit(["a bb cc", "bb dd"])
    untorn.publish(state_of(vectorizer), name="words", directory=tmp_path).close()
    program = f"""
import pickle, untorn
from untorn.sklearn import estimator_of
def refuse(*_, **__): raise AssertionError("a pickle")
pickle.loads = pickle.load = refuse
made = untorn.subscribe({str(tmp_path / "words")!r}).cached(estimator_of)
print(made.transform(["bb dd"]).toarray().tolist())
"""
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert found.strip() == str(vectorizer.transform(["bb dd"]).toarray().tolist())


class Own(BaseEstimator):
    pass


def test_what_is_refused():
    with pytest.raises(UnsupportedTypeError, match=r"expected an estimator of scikit-learn, found .*Own"):
        state_of(Own())
    with pytest.raises(UnsupportedTypeError, match=r"Pipeline/steps/1/1: a .*Own, which is neither"):
        state_of(make_pipeline(StandardScaler(), Own()))
    with pytest.raises(UnsupportedTypeError, match=r"FunctionTransformer/func: a functools.partial"):
        state_of(FunctionTransformer(partial(np.add, 1)))
    for wrong in (1, {}, {"sklearn": "1", "estimator": {"object": "sklearn.base:NoSuch", "arguments": ()}}):
        with pytest.raises(FormatError, match=r"estimator_of\(\)"):
            estimator_of(wrong)


@pytest.mark.parametrize(
    "place", ["subprocess:Popen", "os:system", "sklearn.base:warnings.warn", "sklearn.utils:np.save", "sklearn:clone"]
)
def test_a_state_makes_nothing_but_objects_of_scikit_learn(place):
    for kind in ("object", "made"):
        state = {"sklearn": "1", "estimator": {kind: place, "arguments": ("x",)}}
        with pytest.raises(FormatError, match=r"estimator_of\(\)"):
            estimator_of(state)
    for kind in ("ufunc", "scalar"):
        with pytest.raises(FormatError, match="of NumPy"):
            estimator_of({"sklearn": "1", "estimator": {kind: "save"}})


def test_the_error_for_an_estimator_names_the_door():
    with pytest.raises(UnsupportedTypeError, match=r"untorn\.sklearn\.state_of"):
        untorn.publish({"model": LogisticRegression()})


def test_modules():
    torch = pytest.importorskip("torch")
    from untorn.torch import loader

    make = partial(torch.nn.Linear, 3, 2)
    source = make()
    with pytest.raises(UnsupportedTypeError, match=r"untorn\.torch\.loader"):
        untorn.publish({"model": source})
    with untorn.publish(source.state_dict()) as publisher:
        reader = publisher.subscriber()
        made = reader.cached(loader(make))
        assert made is reader.cached(loader(make)) and not made.training
        assert torch.equal(made.weight, source.weight) and made.weight.requires_grad
        publisher.update({name: np.ones(part.shape, np.float32) for name, part in source.state_dict().items()})
        newer = reader.cached(loader(make))
        assert newer is not made and (newer.weight == 1).all()
        newer.weight.data.zero_()  # a copy, which may be changed
        assert (reader.snapshot().value["weight"] == 1).all()
        publisher.update({"other": torch.zeros(1)})
        with pytest.raises(RuntimeError, match="Missing key"):
            reader.cached(loader(make))
