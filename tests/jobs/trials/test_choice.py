"""Choice: metrics of candidates against scikit-learn, the rule, blends, and the table."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics

from jobs.trials.candidates import TREES, Candidate, Kind
from jobs.trials.choice import TIED, choose
from jobs.trials.folds import Fold, Folds
from jobs.trials.table import Choice
from mibf.ensemble import cross_fitted

SAMPLES, CLASSES = 120, 3
BLOCK = np.arange(SAMPLES) // 10
GROUP = BLOCK % 3
LABELS = np.random.default_rng(0).integers(0, CLASSES, SAMPLES)


def folds(group: NDArray[np.int64] = GROUP, **more: Any) -> Folds:
    number = int(group.max()) + 1
    each = tuple(Fold(np.flatnonzero(group != k), np.flatnonzero(group == k)) for k in range(number))
    return Folds(each, more.pop("block", BLOCK), 10, group, **more)


def candidate(
    name: str, skill: float, *, seed: int = 0, steps: int = 100, seconds: float = 1.0, scale: float = 1.0
) -> Candidate:
    """Logits that favor the label by `skill`, with noise of its own."""
    noise = np.random.default_rng([seed, *name.encode()]).normal(size=(SAMPLES, CLASSES))
    kinds: dict[str, Kind] = {"boosted trees": "trees", "logistic regression": "linear"}
    logits = scale * (noise + skill * np.eye(CLASSES)[LABELS])
    return Candidate(name, kinds.get(name, "network"), steps, logits, seconds, single_source=name.endswith("alone"))


def chosen(*candidates: Candidate, **more: Any) -> Choice:
    return choose(candidates, LABELS, more.pop("folds", folds()), seed=0)


def test_metrics_are_those_of_the_cross_fitted_probabilities() -> None:
    own = candidate("sharp", 1.5, scale=4.0)
    (row,) = chosen(own).rows
    logarithms, blend = cross_fitted([own.logits], LABELS, GROUP)
    named = logarithms.argmax(axis=1)
    assert row.figures["log_loss"] == pytest.approx(metrics.log_loss(LABELS, np.exp(logarithms)))
    assert row.figures["overall_accuracy"] == pytest.approx(metrics.accuracy_score(LABELS, named))
    assert row.figures["macro_f1"] == pytest.approx(metrics.f1_score(LABELS, named, average="macro"))
    assert row.figures["kappa"] == pytest.approx(metrics.cohen_kappa_score(LABELS, named))
    assert row.temperatures == blend.temperatures
    assert row.temperatures[0] > 2
    assert row.figures["ece"] < 0.15
    assert row.intervals is not None
    for name, (low, high) in row.intervals.items():
        assert low < high, name
        assert low - 0.05 <= row.figures[name] <= high + 0.05


def test_least_log_loss_wins_and_the_number_of_steps_is_chosen_with_it() -> None:
    found = chosen(
        candidate("net", 0.2, steps=100), candidate("net", 2.5, steps=200), candidate("net", 1.0, seed=1, steps=400)
    )
    assert [(m.name, m.steps, m.share) for m in found.members] == [("net", 200, 1.0)]
    assert found.best.why == "chosen"
    assert [row.why for row in found.rows] == ["200 steps are better", "chosen", "200 steps are better"]
    assert "net (200 steps)" in found.sentence


def test_equal_candidates_are_distinguished_by_cost() -> None:
    slow = candidate("slow", 2.0, seconds=9.0)
    found = chosen(slow, replace(slow, name="quick", seconds=2.0))
    assert [m.name for m in found.members] == ["quick"]
    assert {row.name: row.why for row in found.rows}["slow"] == "equal, but costs more"


def test_macro_f1_decides_between_equal_log_losses() -> None:
    """Both give each label almost the same probability, but only one puts it above the other classes everywhere."""
    right = np.where(np.eye(CLASSES)[LABELS] > 0, 0.44, 0.28)
    wrong = np.where(np.eye(CLASSES)[LABELS] > 0, 0.439, 0.0)
    rival = (LABELS + 1) % CLASSES
    wrong[np.arange(SAMPLES), rival] = 0.45
    wrong[wrong == 0] = 0.111
    # Half of the samples each, so that the temperature is the same.
    logits = np.where((np.arange(SAMPLES) % 3 == 0)[:, None], np.log(wrong), np.log(right))
    good, bad = Candidate("good", "network", 1, np.log(right), 5.0), Candidate("bad", "network", 1, logits, 1.0)
    one = folds(np.zeros(SAMPLES, np.int64), block=np.zeros(SAMPLES, np.int64))
    found = chosen(bad, good, folds=one)
    by_name = {row.name: row for row in found.rows}
    assert by_name["bad"].figures["macro_f1"] < by_name["good"].figures["macro_f1"] - 0.2
    assert [m.name for m in found.members] == ["good"]


def test_network_and_trees_that_complement_each_other_are_blended() -> None:
    """Each knows one half of the samples and guesses the others."""
    half = (np.arange(SAMPLES) % 2 == 0)[:, None]
    a, b = candidate("a", 5.0), candidate(TREES, 5.0)
    a = replace(a, logits=np.where(half, a.logits, 0.1 * a.logits.mean()))
    b = replace(b, logits=np.where(half, 0.1 * b.logits.mean(), b.logits))
    found = chosen(a, b)
    assert found.best.name == f"a + {TREES}"
    assert sum(m.share for m in found.members) == pytest.approx(1)
    assert all(0.3 < m.share < 0.7 for m in found.members)
    best = min(row.figures["log_loss"] for row in found.rows if len(row.steps) == 1)
    assert found.best.figures["log_loss"] < best * (1 - TIED)
    assert found.best.seconds == 2.0
    assert found.sentence.startswith("chosen: a blend of")


def test_blend_that_is_as_good_as_its_best_member_is_preferred() -> None:
    """Twins differ in nothing, so that blending them changes nothing either."""
    twin = candidate("net", 2.0)
    found = chosen(twin, replace(twin, name=TREES, kind="trees"))
    assert [m.name for m in found.members] == ["net", TREES]
    assert {row.name: row.why for row in found.rows}["net"] == "equal, but more members are safer"


def test_only_the_best_network_is_blended_and_no_idle_member() -> None:
    found = chosen(*(candidate(name, skill) for name, skill in (("a", 1.0), ("b", 2.0), ("c", 1.5), (TREES, 1.8))))
    assert [row.name for row in found.rows if len(row.steps) > 1] == [f"b + {TREES}"]
    useless = chosen(candidate("good", 4.0), candidate(TREES, -4.0))
    assert [m.name for m in useless.members] == ["good"]
    assert all(len(row.steps) == 1 for row in useless.rows)


def test_three_kinds_are_blended_two_by_two_and_all_together() -> None:
    names = ("network", "boosted trees", "logistic regression")
    found = chosen(*(candidate(name, 1.0) for name in names))
    blends = [row.kinds for row in found.rows if len(row.kinds) > 1]
    assert blends == [("network", "trees"), ("network", "linear"), ("trees", "linear"), ("network", "trees", "linear")]
    assert [m.kind for m in found.members] == ["network", "trees", "linear"], "independent noise averages out"


def test_model_without_network_is_left_out_where_a_network_is_needed() -> None:
    candidates = [candidate("network", 0.5), candidate(TREES, 4.0)]
    free = choose(candidates, LABELS, folds(), seed=0)
    assert [m.kind for m in free.members] == ["trees"]
    bound = choose(candidates, LABELS, folds(), seed=0, network_reason="the map's products need")
    assert "network" in {m.kind for m in bound.members}
    assert {row.name: row.why for row in bound.rows}[TREES] == "has no network, which the map's products need"
    trees = choose(candidates[1:], LABELS, folds(), seed=0, network_reason="the map's products need")
    assert [m.kind for m in trees.members] == ["trees"], "there is no network among the candidates"


def test_single_source_is_chosen_only_where_it_is_better_beyond_chance() -> None:
    whole, alone = candidate("network", 1.0), candidate("network on radar alone", 1.02, seed=1)
    found = chosen(whole, alone)
    assert [m.name for m in found.members] == ["network"]
    row = next(row for row in found.rows if row.name == alone.name)
    assert row.why == "not better than all sources beyond chance"
    assert [m.name for m in chosen(whole, candidate(alone.name, 3.0)).members] == [alone.name]
    one_block = folds(np.zeros(SAMPLES, np.int64), block=np.zeros(SAMPLES, np.int64))
    assert [m.name for m in chosen(whole, candidate(alone.name, 3.0), folds=one_block).members] == ["network"]


def test_samples_that_are_not_measured_do_not_count() -> None:
    group = np.where(LABELS == 2, -1, GROUP)
    own, other = candidate("a", 1.0), candidate("b", 0.5)
    blank = [replace(c, logits=np.where((group < 0)[:, None], np.nan, c.logits)) for c in (own, other)]
    found = chosen(*blank, folds=folds(group))
    assert found == chosen(own, other, folds=folds(group))
    assert found.samples == (LABELS != 2).sum()


def test_infinite_logits_are_left_out_and_named() -> None:
    broken = replace(candidate("broken", 9.0), logits=np.full((SAMPLES, CLASSES), np.inf))
    found = chosen(broken, candidate("sound", 1.0))
    assert [row.name for row in found.rows] == ["sound"]
    assert found.notes == ("broken, 100 steps: logits are not finite",)
    with pytest.raises(ValueError, match="no candidate"):
        chosen(broken)


def test_given_split_is_cross_fitted_over_halves_of_the_blocks() -> None:
    own = candidate("net", 1.0, scale=3.0)
    single = Folds((Fold(np.arange(0), np.arange(SAMPLES)),), BLOCK, 10, np.zeros(SAMPLES, np.int64), ("given split",))
    found = chosen(own, folds=single)
    logarithms, _ = cross_fitted([own.logits], LABELS, BLOCK % 2)
    assert found.best.figures["log_loss"] == pytest.approx(metrics.log_loss(LABELS, np.exp(logarithms)))
    assert "the given split" in found.lines()[0]
    assert found.notes == ("given split",)


def test_table_and_json_hold_all_candidates_and_the_choice() -> None:
    one = folds(block=np.zeros(SAMPLES, np.int64))
    for found in (chosen(candidate("a", 1.0), candidate("b", 0.2)), chosen(candidate("a", 1.0), folds=one)):
        lines = found.lines()
        assert sum(line.startswith("| a") for line in lines) >= 1
        assert found.sentence in lines
        stored = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert [row["name"] for row in stored["rows"]] == [row.name for row in found.rows]
        assert stored["members"][0]["name"] == "a"
    assert found.best.intervals is None
