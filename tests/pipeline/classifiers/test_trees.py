"""Boosted trees: text, scores and training; trees against a walk through them in Python."""

from __future__ import annotations

import builtins
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mibf.errors import InputError
from pipeline.classifiers.blocks import BLOCK
from pipeline.classifiers.trees import LabelledFeatures, Trees, fit_trees


def drawn(
    samples: int, *, features: int = 5, classes: int = 3, seed: int = 0, missing: float = 0.05
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features of which the first ones depend on the class, some missing, with their classes."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, samples)
    found = generator.normal(size=(samples, features)).astype(np.float32)
    found[:, :classes] += 2 * (labels[:, None] == np.arange(classes))
    found[generator.random(found.shape) < missing] = np.nan
    return found, labels


@pytest.fixture(scope="module")
def trees() -> Trees:
    """Three classes by five features, of which some are missing."""
    return fit_trees(*drawn(1000), classes=3, rounds=6)


def accuracy(trees: Trees, samples: tuple[NDArray[np.float32], NDArray[np.int64]]) -> float:
    return float((trees.scores(samples[0]).argmax(axis=1) == samples[1]).mean())


# --- scores ---


def walked(text: str, row: NDArray[np.float32], classes: int) -> NDArray[np.float64]:
    """The scores of a row: for each class, the sum over its trees of the leaf that the row falls into."""
    scores = np.zeros(classes)
    for number, block in enumerate(text.partition("end of trees")[0].split("Tree=")[1:]):
        fields = {name: value.split() for name, value in (line.split("=") for line in block.split("\n")[1:] if line)}
        node = 0 if len(fields["leaf_value"]) > 1 else -1
        while node >= 0:
            value, kind = float(row[int(fields["split_feature"][node])]), int(fields["decision_type"][node])
            if np.isnan(value) and kind >> 2 & 3 == 2:
                left = bool(kind & 2)
            else:
                left = (0.0 if np.isnan(value) else value) <= float(fields["threshold"][node])
            node = int(fields["left_child" if left else "right_child"][node])
        scores[number % classes] += float(fields["leaf_value"][-1 - node])
    return scores


def test_scores_are_the_sums_of_the_leaves(trees: Trees) -> None:
    features, _ = drawn(200, seed=1, missing=0.3)
    expected = np.stack([walked(trees.text, row, 3) for row in features])
    found = trees.scores(features)
    assert (found.dtype, found.shape) == (np.float64, (200, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("leaves", [2, 15, 100])
def test_scores_have_the_bytes_of_lightgbm(missing: float, leaves: int) -> None:
    import lightgbm

    features, labels = drawn(2000, missing=missing)
    features = np.round(features, 1)  # values that are thresholds
    trees = fit_trees(features, labels, classes=4, rounds=20, leaves=leaves)
    rows, _ = drawn(500, seed=1, missing=0.2)
    rows[:100] = np.round(rows[:100], 1)
    rows[100:110] = np.inf
    expected = lightgbm.Booster(model_str=trees.text).predict(rows, raw_score=True, num_threads=1)
    assert trees.scores(rows).tobytes() == np.asarray(expected).tobytes()


def test_scores_do_not_depend_on_batch_order_and_threads(trees: Trees) -> None:
    features, _ = drawn(2 * BLOCK + 77, seed=2)
    expected = trees.scores(features, threads=1)
    order = np.random.default_rng(0).permutation(len(features))
    assert trees.scores(features, threads=3).tobytes() == expected.tobytes()
    assert trees.scores(features[order]).tobytes() == expected[order].tobytes()
    assert trees.scores(features[5:6]).tobytes() == expected[5:6].tobytes()
    assert trees.scores(np.asfortranarray(features[:500])).tobytes() == expected[:500].tobytes()
    assert trees.scores(features[:0]).shape == (0, 3)


def test_scores_of_other_features_are_refused(trees: Trees) -> None:
    with pytest.raises(ValueError, match=r"expected \(n, 5\)"):
        trees.scores(np.zeros((3, 4), np.float32))


def test_scores_in_threads_while_torch_computes(trees: Trees) -> None:
    features, _ = drawn(3 * BLOCK)
    expected = trees.scores(features).tobytes()
    matrix = torch.rand(256, 256)
    product = matrix @ matrix
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(trees.scores(features).tobytes())) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert torch.equal(matrix @ matrix, product)
    assert found == [expected] * 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_scores_in_a_forked_process(trees: Trees) -> None:
    features, _ = drawn(3 * BLOCK)
    expected = trees.scores(features).tobytes()
    fit_trees(*drawn(100), classes=3, rounds=2, threads=3)  # OpenMP threads that the forked process does not have
    child = os.fork()
    if not child:
        os._exit(0 if trees.scores(features).tobytes() == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- text ---


def test_text_gives_the_same_model(trees: Trees) -> None:
    again = Trees.from_text(trees.text, classes=3, features=5)
    assert (again.text, again.classes, again.features, again.rounds) == (trees.text, 3, 5, 6)
    features, _ = drawn(100, seed=3)
    assert again.scores(features).tobytes() == trees.scores(features).tobytes()


def test_binary_model_scores_two_classes() -> None:
    import lightgbm

    features, labels = drawn(300, classes=2)
    params = {"objective": "binary", "sigmoid": 0.5, "verbosity": -1, "num_leaves": 4}
    booster = lightgbm.train(params, lightgbm.Dataset(features, labels), 5)
    found = Trees.from_text(booster.model_to_string(), classes=2).scores(features)
    probabilities = torch.from_numpy(found).softmax(dim=1).numpy()
    np.testing.assert_allclose(probabilities[:, 1], booster.predict(features), rtol=1e-9)


def other_model(categories: list[int], **params: Any) -> str:
    """The text of a model with other settings."""
    import lightgbm

    features, _ = drawn(200)
    features[:, 0] = np.arange(200) % 5
    settings = {"objective": "multiclass", "num_class": 3, "verbosity": -1, "min_data_per_group": 1} | params
    data = lightgbm.Dataset(features, np.arange(200) % 5 % 3, categorical_feature=categories, params=settings)
    return lightgbm.train(settings, data, 1).model_to_string()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"objective": "regression", "num_class": 1},
            "has the objective 'regression'; mibf reads",
        ),
        ({"objective": "multiclassova", "num_class": 3}, "has the objective 'multiclassova"),
        (
            {"objective": "multiclass", "num_class": 3, "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
            "forest",
        ),
        ({"linear_tree": True}, "linear leaves"),
        ({"categories": [0]}, "categorical features"),
    ],
)
def test_models_of_other_kinds_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trees.from_text(other_model(**{"categories": []} | params), name="trees.txt")


@pytest.mark.parametrize("expected", [{"classes": 4}, {"features": 6}])
def test_other_numbers_of_classes_and_features_are_refused(trees: Trees, expected: dict[str, int]) -> None:
    ((what, number),) = expected.items()
    with pytest.raises(InputError, match=rf"trees\.txt: .* have [35] {what}, expected {number}; train again"):
        Trees.from_text(trees.text, name="trees.txt", **expected)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tree\n", "\x00", "is not a LightGBM model in text format"),
        ("num_class=3", "num_class=x", "num_class is 'x'"),
        ("num_tree_per_iteration=3", "num_tree_per_iteration=2", "2 trees a round for 3 classes"),
        ("max_feature_idx=4", "max_feature_idx=7", "not 8 names and ranges"),
        ("tree_sizes=", "tree_sizes=9 ", "num_leaves is ''"),
        ("Tree=1\n", "Tree=2\n", "tree 1 is not where it should be"),
        ("left_child=", "left_child=0 ", "left_child does not hold"),
        ("leaf_value=-", "leaf_value=x", "leaf_value does not hold"),
        ("threshold=", "num_cat=0\nthreshold=", "incomplete: |twice"),
    ],
)
def test_damaged_models_are_refused(trees: Trees, old: str, new: str, message: str) -> None:
    assert old in trees.text
    with pytest.raises(InputError, match=rf"(?s)^trees\.txt: .*({message}).*; train again, or restore the file"):
        Trees.from_text(trees.text.replace(old, new, 1), name="trees.txt")


@given(data=st.data())
def test_damaged_text_never_ends_the_process(trees: Trees, data: st.DataObject) -> None:
    """LightGBM itself aborts on a malformed tree and follows any child."""
    at = data.draw(st.integers(0, len(trees.text) - 1))
    cut = data.draw(st.integers(0, 3))
    text = trees.text[:at] + data.draw(st.text("0123456789-. =e\n", max_size=3)) + trees.text[at + cut :]
    try:
        found = Trees.from_text(text[: data.draw(st.sampled_from([None, at]))])
    except InputError:
        return
    assert found.scores(np.zeros((2, found.features), np.float32)).shape == (2, found.classes)


# --- training ---


def test_same_seed_gives_the_same_bytes_for_any_number_of_threads() -> None:
    features, labels = drawn(6000, features=12, seed=4)
    weights = np.random.default_rng(0).random(len(labels))
    validation = LabelledFeatures(*drawn(500, features=12, seed=5))
    texts = [
        fit_trees(
            features, labels, classes=3, weights=weights, validation=validation, rounds=3, seed=seed, threads=threads
        ).text
        for seed, threads in ((0, 1), (0, 3), (0, None), (1, 1))
    ]
    assert texts[0] == texts[1] == texts[2] != texts[3]


def test_few_samples_are_enough(capfd: pytest.CaptureFixture[str]) -> None:
    assert accuracy(fit_trees(*drawn(40), classes=3, rounds=50), drawn(500, seed=6)) > 0.6
    assert fit_trees(*drawn(2), classes=3).rounds == 1
    nothing = np.full((40, 5), np.nan, np.float32)
    assert np.isfinite(fit_trees(nothing, drawn(40)[1], classes=3).scores(nothing)).all()
    assert capfd.readouterr() == ("", "")


def test_class_without_samples_is_never_predicted(capfd: pytest.CaptureFixture[str]) -> None:
    features, labels = drawn(300)
    found = fit_trees(features, np.array([0, 2, 4])[labels], classes=6, rounds=30)
    scores = found.scores(features)
    assert (found.classes, scores.shape) == (6, (300, 6))
    assert (scores[:, [1, 3, 5]].max(axis=1) < scores[:, [0, 2, 4]].min(axis=1) - 20).all()
    assert capfd.readouterr() == ("", "")


def test_single_class_is_predicted_everywhere() -> None:
    features, _ = drawn(50)
    assert (fit_trees(features, np.full(50, 1), classes=2).scores(features).argmax(axis=1) == 1).all()


def test_weights_act_like_repeated_samples() -> None:
    features, labels = drawn(400)
    rare = labels == 2
    plain, weighted = (
        fit_trees(features, labels, classes=3, rounds=5, weights=weights).scores(features).argmax(axis=1)
        for weights in (None, np.where(rare, 20.0, 1.0))
    )
    assert (weighted == 2).sum() > (plain == 2).sum()


def loss(trees: Trees, samples: LabelledFeatures) -> float:
    """Mean cross-entropy."""
    scores = torch.from_numpy(trees.scores(samples.features))
    return float(torch.nn.functional.cross_entropy(scores, torch.from_numpy(samples.labels)))


def test_training_keeps_the_rounds_of_the_lowest_validation_loss() -> None:
    features, labels = drawn(150)
    labels = np.where(np.random.default_rng(1).random(150) < 0.4, 0, labels)  # noise that later rounds learn
    validation = LabelledFeatures(*drawn(200, seed=7))
    settings: dict[str, Any] = {"classes": 3, "learning_rate": 0.3}
    found = fit_trees(features, labels, validation=validation, rounds=40, **settings)
    losses = [loss(fit_trees(features, labels, rounds=rounds, **settings), validation) for rounds in range(1, 41)]
    assert found.rounds == 1 + int(np.argmin(losses)) < 40
    assert loss(found, validation) == pytest.approx(min(losses), abs=1e-9)
    early = fit_trees(features, labels, validation=validation, rounds=40, stopping_rounds=1, **settings)
    assert early.rounds == 1 + next(i for i in range(40) if losses[i + 1] > losses[i])


def test_validation_samples_of_classes_without_training_samples_do_not_stop() -> None:
    features, labels = drawn(300)
    validation = drawn(100, seed=8)
    unknown = LabelledFeatures(
        np.concatenate([validation[0], validation[0]]), np.concatenate([validation[1], np.full(100, 3)])
    )
    of_known, of_all = (
        fit_trees(features, labels, classes=4, rounds=60, validation=v) for v in (LabelledFeatures(*validation), unknown)
    )
    assert of_known.text == of_all.text
    only = LabelledFeatures(validation[0], np.full(100, 3))
    assert fit_trees(features, labels, classes=4, rounds=30, validation=only).rounds == 30


def test_training_ends_in_time() -> None:
    def ticks() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += 1

    source = ticks()
    assert fit_trees(*drawn(200), classes=3, seconds=4, clock=lambda: next(source)).rounds == 4
    assert fit_trees(*drawn(200), classes=3, seconds=0).rounds == 1


@pytest.mark.parametrize("change", [{"classes": 1}, {"rounds": 0}, {"features": np.zeros((1, 5), np.float32)}])
def test_training_without_samples_classes_or_rounds_is_refused(change: dict[str, Any]) -> None:
    features, labels = drawn(10)
    with pytest.raises(ValueError, match="training needs two samples"):
        fit_trees(**{"features": features, "labels": labels, "classes": 3} | change)


# --- LightGBM's runtime ---


def test_missing_openmp_runtime_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_runtime(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "lightgbm":
            raise OSError("libgomp.so.1: cannot open shared object file: No such file or directory")
        return original(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "lightgbm", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_runtime)
    with pytest.raises(InputError, match=r"libgomp\.so\.1.*apt-get install libgomp1.*brew install libomp"):
        fit_trees(*drawn(10), classes=3)
