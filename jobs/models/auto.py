"""The recipe `auto`: choose how to train, on this scene, by trials over folds of spatial blocks within a stated budget.

Trials compare boosted trees, logistic regression, and networks trained with and without turned patches, and on each source
alone, for several numbers of steps, on drawn training and validation pixels (`jobs.trials`). From their out-of-fold
predictions follow the members of the model, the network's recipe and length of training, shares and temperatures. Keys that
the configuration gives are kept, and limit what is tried. Test pixels are never read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jobs.config.config import Config
from jobs.config.train import ModelSection, SamplingSection, TrainSection
from jobs.models.members import TrialBlend
from jobs.runtime.progress import info
from jobs.trials.candidates import Candidate, linear_candidates, network_candidates, tree_candidates
from jobs.trials.choice import choose
from jobs.trials.folds import Folds, make_folds
from jobs.trials.networks import NetworkRecipe
from jobs.trials.samples import TrialSamples, read_trial_samples
from jobs.trials.table import Choice, Member
from jobs.workflow.workspace import Workspace
from mibf.ensemble import Blend
from mibf.network.spec import BETWEEN, NetworkSpec
from mibf.normalization import Scaling
from pipeline.classifiers.pixel_features import NEIGHBORHOOD
from pipeline.io import storage
from pipeline.io.lease import Lease
from pipeline.maps.mixture import NEED_NETWORKS
from pipeline.parallel.cpu_count import cpu_count
from pipeline.sampling.store_catalog import sample_table
from pipeline.store.patch_store import PatchStore

#: Minutes for trials and training together by default: the least, for `SMALL` training samples, growing with the square
#: root of their number, and the most.
LEAST_MINUTES, MOST_MINUTES, SMALL = 4.0, 13.0, 25_000
#: Share of the budget for trials.
TRIAL_SHARE = 0.5
#: Samples of the trials, and the numbers of steps and rounds and the penalties that they compare.
SAMPLES, STEPS, ROUNDS, PENALTIES = 12_000, (100, 200, 400), (30, 80), (1e-3, 1e-4, 1e-2, 1e-5)
#: Parts of the time for trials that boosted trees and logistic regression take at most.
TREES_PART, LINEAR_PART = 1 / 4, 1 / 8
#: Training samples from which the statistics of batch norm are computed before each validation.
STATISTICS = 4096
#: Networks of a model: more vary less with the seed.
NETWORKS = 2
#: Version of what the record of a choice contains; others are not resumed from.
RECORD_VERSION = 3
#: Side in pixels of the folds' blocks where the split has none.
SIDE = 64
#: Recipes at most that a note names one by one.
NAMED = 3
#: Trials count fully up to this many times as many training samples as they train on, from there on in proportion less.
REPRESENTATIVE = 5
#: Below this weight of the trials, a network is a member whatever they say: they show too little of what it can learn.
LEAST_WEIGHT = 0.5
#: Training samples from which on batches have 256 samples instead of 128; smaller batches need fewer samples per step.
MANY = 100_000


@dataclass(frozen=True)
class AutoPlan:
    """What `auto` decided."""

    config: Config  #: with the chosen values in place of `auto`
    #: Of the networks together and each classifier that is trained, from out-of-fold predictions, with shares of 0 for what
    #: was not chosen; None where the trials had no such members.
    mixture: TrialBlend | None
    lines: list[str]  #: the table of the trials and the choice, for a person
    record: dict[str, Any]  #: the same as JSON values


def plan_training(
    config: Config,
    workspace: Workspace,
    stores: Sequence[PatchStore],
    scaling: Scaling,
    spec: NetworkSpec,
    *,
    fingerprint: str,
    restart: bool,
    lease: Lease,
    clock: Callable[[], float] = time.monotonic,
) -> AutoPlan:
    """Run the trials of a configuration with the recipe `auto`, or take the recorded ones of an interrupted training.

    Trials depend on the time that they take, so a training that is resumed must not repeat them.

    Raises:
        InputError: a store is damaged, or there are no samples.
    """
    recorded = None if restart else _recorded(workspace, fingerprint)
    if recorded is None:
        recorded = {
            "version": RECORD_VERSION,
            "fingerprint": fingerprint,
            **_decide(config, stores, scaling, spec, clock=clock),
        }
        lease.check()
        storage.write_json(workspace.trials, recorded)
    train = config.train.model_dump() | {"recipe": "standard"} | recorded["train"]
    values = {
        "train": TrainSection.model_validate(train),
        "model": ModelSection.model_validate(config.model.model_dump() | recorded["model"]),
        "sampling": SamplingSection.model_validate(config.sampling.model_dump() | recorded["sampling"]),
    }
    return AutoPlan(
        config=config.model_copy(update=values),
        mixture=(
            TrialBlend(Blend(tuple(recorded["temperatures"]), tuple(recorded["shares"])), recorded["trial_weight"])
            if recorded["shares"]
            else None
        ),
        lines=list(recorded["lines"]),
        record=recorded,
    )


def budget_seconds(config: Config, samples: int) -> float:
    """Return the budget of trials and training in seconds."""
    if config.train.budget_minutes is not None:
        return 60 * config.train.budget_minutes
    grown: float = LEAST_MINUTES * max(1.0, samples / SMALL) ** 0.5
    return 60 * min(grown, MOST_MINUTES)


def _recorded(workspace: Workspace, fingerprint: str) -> dict[str, Any] | None:
    try:
        found = storage.read_json(workspace.trials)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    wanted = (RECORD_VERSION, fingerprint)
    return found if isinstance(found, dict) and (found.get("version"), found.get("fingerprint")) == wanted else None


def _decide(
    config: Config, stores: Sequence[PatchStore], scaling: Scaling, spec: NetworkSpec, *, clock: Callable[[], float]
) -> dict[str, Any]:
    """Run the trials; return the changed values of the configuration, and what else follows from them."""
    begun = clock()
    torch.set_num_threads(config.train.threads or cpu_count())
    available = int(sample_table(stores, "train").counts.sum())
    budget = budget_seconds(config, available)
    seed = config.train.every_seed[0]
    used = {source.name: scaling[source.name] for source in spec.sources}
    samples = read_trial_samples(stores, used, patch=spec.patch, seed=seed, limit=SAMPLES)
    folds = make_folds(
        samples.labels,
        samples.positions,
        samples.is_validation,
        classes=[c.name for c in stores[0].classes],
        patch=max(spec.patch, NEIGHBORHOOD),
        side=config.split_block or SIDE,
        seed=seed,
    )
    batch = _batch(config, available)
    if not folds.folds:
        note = f"no trials: {folds.reason}; the model is a blend, with shares by validation pixels if there are some"
        return _values(config, batch=batch, recipe=None, steps=STEPS[-1], blend=True) | {
            "temperatures": [],
            "shares": [],
            "trial_weight": 1.0,
            "lines": [note, *(f"note: {line}" for line in folds.notes)],
        }
    info(f"auto: trials on {len(samples):,} samples, at most {TRIAL_SHARE * budget / 60:.1f} of {budget / 60:.1f} minutes")
    recipes = _recipes(config, spec, batch=batch)
    candidates, notes = _candidates(config, samples, folds, spec, recipes, seconds=TRIAL_SHARE * budget, clock=clock)
    weight = trial_weight(samples_in_fold(folds), available)
    if weight < 1:
        notes.append(
            f"the trials train on {samples_in_fold(folds):,.0f} of {available:,} training samples, so shares and "
            f"temperatures come from the trials by {weight:.0%} and from validation pixels by {1 - weight:.0%}"
        )
    reason = _network_reason(config, weight)
    choice = choose(candidates, samples.labels, folds, seed=seed, network_reason=reason)
    left = budget - (clock() - begun)
    decided = _from_choice(config, choice, candidates, recipes, folds, available, batch=batch, seconds=left, notes=notes)
    return decided | {"trial_weight": weight}


def trial_weight(trained_on: float, available: int) -> float:
    """Return how far trials count against validation pixels, 0 to 1, by the training samples of both."""
    return min(1.0, REPRESENTATIVE * trained_on / available)


def _network_reason(config: Config, weight: float) -> str | None:
    """Say why the model must have a network, if so; see `choose`."""
    if not NEED_NETWORKS.isdisjoint(config.map.products):
        return "the map's products need"
    return "gains from more samples than the trials have" if weight < LEAST_WEIGHT else None


def samples_in_fold(folds: Folds) -> float:
    """Return the mean number of samples on which a candidate is trained."""
    return sum(len(fold.training) for fold in folds.folds) / len(folds.folds)


def _batch(config: Config, available: int) -> int:
    if "batch_size" in config.train.model_fields_set:
        return config.train.batch_size
    least = 2 * max(1, config.train.most_workers) * config.train.accumulate_steps
    return max(least, min(256 if available >= MANY else 128, available // 4))


def _recipes(config: Config, spec: NetworkSpec, *, batch: int) -> list[NetworkRecipe]:
    """The networks that are tried: with and without turned patches, then each source alone."""
    section = config.train
    common: dict[str, Any] = {
        "learning_rate": section.model_copy(update={"batch_size": batch}).peak_learning_rate,
        "weight_decay": section.weight_decay,
        "beta": config.model.beta,
        "batch_size": batch,
    }
    found = [
        NetworkRecipe("network", augment=False, **common),
        NetworkRecipe("network, turned patches", augment=True, **common),
    ]
    if "augment" in section.model_fields_set:
        found = [found[bool(section.augment)]]
    needs_several = section.source_dropout or "gate" in config.map.products
    if len(spec.sources) > 1 and config.model.sources is None and not needs_several:
        found += [
            NetworkRecipe(f"network on {source.name} alone", sources=(source.name,), augment=False, **common)
            for source in spec.sources
        ]
    return found


def _candidates(
    config: Config,
    samples: TrialSamples,
    folds: Folds,
    spec: NetworkSpec,
    recipes: Sequence[NetworkRecipe],
    *,
    seconds: float,
    clock: Callable[[], float],
) -> tuple[list[Candidate], list[str]]:
    """Train the candidates one after the other; those for which there is no time are left out with a note."""
    begun, seed, threads = clock(), config.train.every_seed[0], config.train.threads
    found, notes = list[Candidate](), list[str]()
    if config.train.blend or "blend" not in config.train.model_fields_set:
        found, notes = tree_candidates(
            samples,
            folds,
            classes=spec.classes,
            rounds=ROUNDS,
            seconds=TREES_PART * seconds,
            seed=seed,
            threads=threads,
            clock=clock,
        )
        penalties = (config.model.penalty,) if "penalty" in config.model.model_fields_set else PENALTIES
        own, remarks = linear_candidates(
            samples,
            folds,
            classes=spec.classes,
            penalties=penalties,
            seconds=LINEAR_PART * seconds,
            seed=seed,
            clock=clock,
        )
        found, notes = found + own, notes + remarks
    main, untried = [recipe for recipe in recipes if recipe.sources is None], list[str]()
    for position, recipe in enumerate(recipes):
        left = seconds - (clock() - begun)
        # The main recipes share the time; single sources get what these leave.
        share = left / max(1, len(main) - position) if recipe in main else left / 2
        if position and left < 0.1 * seconds:
            untried.append(recipe.name)
            continue
        own, remarks = network_candidates(
            samples, folds, spec=spec, recipe=recipe, checkpoints=STEPS, seconds=share, seed=seed, clock=clock
        )
        found, notes = found + own, notes + remarks
    if untried:
        more = f" and {len(untried) - NAMED} more" if len(untried) > NAMED else ""
        notes.append(f"{', '.join(untried[:NAMED])}{more}: not tried, because the time for trials was used up")
    return found, notes


def _from_choice(
    config: Config,
    choice: Choice,
    candidates: Sequence[Candidate],
    recipes: Sequence[NetworkRecipe],
    folds: Folds,
    available: int,
    *,
    batch: int,
    seconds: float,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Turn the choice into values of the configuration."""
    networks = [member for member in choice.members if member.kind == "network"]
    others = [member for member in choice.members if member.kind != "network"]
    lines = [*choice.lines(), *(f"note: {note}" for note in notes)]
    given = config.train.blend and "blend" in config.train.model_fields_set
    if given and not (networks and others):
        lines.append("note: train.blend is given, so the model is a blend all the same, with shares by validation pixels")
    common: dict[str, Any] = {"lines": lines, "trials": choice.to_json(), "temperatures": [], "shares": []}
    linear = next((each for each in others if each.kind == "linear"), None) or _best(choice, "linear")
    penalty = {} if linear is None else {"penalty": linear.penalty}
    if not networks and not given:
        kind = "boosting" if others[0].kind == "trees" else "linear"
        changed = {"train": {"blend": len(others) > 1}, "model": {"kind": kind, **penalty}, "sampling": {}}
        return changed | common | _mixture(choice, [], others, [each.kind for each in others])
    member = networks[0] if networks else _best(choice, "network", [r.name for r in recipes if r.sources is None])
    assert member is not None  # the first recipe is always tried
    recipe = next(r for r in recipes if r.name == member.name)
    # Where the network sees one source, so do the others of the blend. The trials' shares are of others that saw all of
    # them; they are kept, because shares fitted to validation pixels alone dropped the trees where the trials did not.
    if networks and (others or not given):
        common |= _mixture(choice, networks, others, ["trees", "linear"] if others else [])
    reached = [c for c in candidates if c.name == member.name]
    in_fold = samples_in_fold(folds)
    # As many passes over the samples as in the trial; if the loss still fell at its end, twice as many.
    steps = member.steps * max(1.0, available / in_fold)
    if member.steps == max(c.steps for c in reached):
        steps *= 2
    chosen = next(c for c in reached if c.steps == member.steps)
    per_step = chosen.seconds / (len(folds.folds) * chosen.steps)
    count = network_count(config)
    possible = int(seconds / (count * max(per_step, 1e-6)))
    steps = max(STEPS[0], min(round(steps), possible))
    values = _values(config, batch=batch, recipe=recipe, steps=steps, blend=bool(others))
    values["model"] |= penalty
    return values | common


def _mixture(choice: Choice, networks: Sequence[Member], others: Sequence[Member], trained: Sequence[str]) -> dict[str, Any]:
    """The temperatures and shares of the networks together and of the classifiers that are trained, by kind."""
    members = [networks[0] if networks else None]
    members += [next((each for each in others if each.kind == kind), None) for kind in trained]
    # The temperature of a member without a share is used where validation pixels give it one.
    tried = [
        _best(choice, kind) if each is None else each for each, kind in zip(members, ["network", *trained], strict=True)
    ]
    return {
        "temperatures": [1.0 if each is None else each.temperature for each in tried],
        "shares": [0.0 if each is None else each.share for each in members],
    }


def _best(choice: Choice, kind: str, names: Collection[str] | None = None) -> Member | None:
    """The candidate of a kind, among those of some names, with the least log loss; None if there is none."""
    rows = [row for row in choice.rows if row.kinds == (kind,) and (names is None or row.name in names)]
    if not rows:
        return None
    row = min(rows, key=lambda each: each.figures["log_loss"])
    return Member(row.name, kind, row.steps[0], row.temperatures[0], 1.0, row.penalty)


def network_count(config: Config) -> int:
    """Return the number of networks of a model that is not boosted trees alone."""
    return len(config.train.every_seed) if config.train.seeds is not None else NETWORKS


def _values(config: Config, *, batch: int, recipe: NetworkRecipe | None, steps: int, blend: bool) -> dict[str, Any]:
    """The values of the configuration that a recipe sets, unless the configuration gives them."""
    given = config.train.model_fields_set
    first = config.train.every_seed[0]
    train: dict[str, Any] = {
        "batch_size": batch,
        "augment": recipe is None or recipe.augment,
        "batch_norm_samples": STATISTICS,
        "select": "last" if "early_stopping_patience" not in given else config.train.select,
        "seeds": [first + i for i in range(NETWORKS)],
        "ensemble": True,
        "blend": blend,
    }
    sampling = {}
    if "epochs" not in given and "steps" not in given:
        train |= {"steps": steps, "validate_steps": max(1, steps // 5)}
        sampling = {"epoch_fraction": 1.0}  # a share of an epoch means nothing where steps are given
    kept = {key: value for key, value in train.items() if key not in given}
    if "seeds" in given and len(config.train.every_seed) < 2:
        kept["ensemble"] = False
    model: dict[str, Any] = {}
    if recipe is not None and recipe.sources is not None:
        model = {"sources": list(recipe.sources), "without": sorted({*config.model.without, *BETWEEN})}
    return {"train": kept, "model": model, "sampling": sampling}
