"""Choose between candidates, and blends of them, by their out-of-fold predictions.

All candidates are compared on the same samples, with temperatures and shares fitted to the other folds. The best network,
the best boosted trees and the best logistic regression are also blended, each two of them and all three. A network on a
single source is only considered if its log loss is lower than that of the best network on all sources beyond chance. The
rule, in this order:

1. Those whose log loss is at most `TIED` above the least, in proportion, count as equal.
2. Of these, those whose macro-F1 is at most `TIED_F1` below the greatest count as equal.
3. Of these, the one with the most members wins: models that fail differently are together the safer choice for new ground.
   Then the one that took the fewest seconds.

The log loss comes first because it punishes wrong confidence too and varies less with chance than counts of hits; macro-F1
comes next so that rare classes decide where the log loss does not.

Legend for shapes: n samples that are compared, B blocks, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from jobs.trials.candidates import Candidate, Kind
from jobs.trials.folds import Folds
from jobs.trials.table import Choice, Member, TrialRow
from mibf.ensemble import Blend, cross_fitted
from mibf.metrics.block_bootstrap import BlockCounts, draw_blocks, interval

TIED, TIED_F1 = 0.02, 0.01


@dataclass(frozen=True)
class _Scored:
    """A candidate or a blend with its cross-fitted results."""

    members: tuple[Candidate, ...]
    blend: Blend  #: fitted to all compared samples
    losses: NDArray[np.float64]  #: -log of the cross-fitted probability of each label (n,)
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]] | None

    @property
    def name(self) -> str:
        return " + ".join(m.name for m in self.members)

    @property
    def has_network(self) -> bool:
        return any(m.kind == "network" for m in self.members)

    @property
    def log_loss(self) -> float:
        return self.figures["log_loss"]

    @property
    def macro_f1(self) -> float:
        return self.figures["macro_f1"]

    @property
    def seconds(self) -> float:
        return sum(m.seconds for m in self.members)


class _Scorer:
    """Scores candidates on the same samples, with the same bootstrap draws."""

    def __init__(self, labels: NDArray[np.int64], folds: Folds, *, seed: int) -> None:
        self.measured = folds.measured
        self.labels = labels[self.measured]
        blocks, self.block = np.unique(folds.block[self.measured], return_inverse=True)
        self.number = len(blocks)
        # With the given split alone, halves of the blocks take the place of folds.
        self.groups = folds.group[self.measured] if len(folds.folds) > 1 else self.block % 2
        self.drawn = draw_blocks(self.number, seed=seed) if self.number > 1 else None

    def score(self, members: Sequence[Candidate]) -> _Scored:
        """Cross-fit a candidate or a blend, and measure it."""
        logits = [m.logits[self.measured] for m in members]
        logarithms, blend = cross_fitted(logits, self.labels, self.groups)
        losses = -logarithms[np.arange(len(self.labels)), self.labels]
        counts = BlockCounts.of(np.exp(logarithms), self.labels, self.block, number=self.number)
        figures = counts.figures() | {"log_loss": float(losses.mean())}
        intervals = None
        if self.drawn is not None:
            each = counts.replicates(self.drawn) | {"log_loss": self.replicates(losses)}
            intervals = {name: interval(values) for name, values in each.items()}
        return _Scored(tuple(members), blend, losses, figures, intervals)

    def replicates(self, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Means of losses (n,) in every bootstrap replicate (R,)."""
        assert self.drawn is not None
        sums, counts = np.bincount(self.block, losses, self.number), np.bincount(self.block, minlength=self.number)
        return np.asarray(self.drawn @ sums / (self.drawn @ counts))


def choose(
    candidates: Sequence[Candidate], labels: NDArray[np.int64], folds: Folds, *, seed: int, network_reason: str | None = None
) -> Choice:
    """Choose a candidate, or a blend of the best ones of each kind.

    Of each name only the best number of steps is a finalist.

    Args:
        candidates: at least one with finite logits.
        labels: class positions of all samples.
        folds: that made the candidates' logits.
        seed: of the bootstrap.
        network_reason: why what is chosen must have a network as a member, if one is among the candidates; completes "has no
            network, which ...".

    Raises:
        ValueError: no candidate has finite logits of all samples that are compared.
    """
    scorer = _Scorer(labels, folds, seed=seed)
    finite = [c for c in candidates if np.isfinite(c.logits[scorer.measured]).all()]
    if not finite:
        raise ValueError("no candidate has finite logits of the samples that are compared")
    scored = [scorer.score([candidate]) for candidate in finite]
    by_name: dict[str, list[_Scored]] = {}
    for each in scored:
        by_name.setdefault(each.name, []).append(each)
    singles = [best(own) for own in by_name.values()]
    singles = _without_needless(scorer, singles)
    blends = _blends(scorer, singles)
    finalists = [*singles, *blends]
    unfit: list[_Scored] = []
    if network_reason is not None and any(each.has_network for each in finalists):
        unfit = [each for each in finalists if not each.has_network]
        finalists = [each for each in finalists if each.has_network]
    chosen = best(finalists)
    reasons = [(each, f"has no network, which {network_reason}") for each in unfit]
    rows = [_row(each, chosen, finalists, reasons) for each in (*scored, *blends)]
    missing = [f"{c.name}, {c.steps} steps: logits are not finite" for c in candidates if not any(c is f for f in finite)]
    return Choice(
        rows=tuple(rows),
        members=tuple(
            Member(m.name, m.kind, m.steps, temperature, share, m.penalty)
            for m, temperature, share in zip(chosen.members, chosen.blend.temperatures, chosen.blend.shares, strict=True)
            if share > 0
        ),
        sentence=_sentence(scorer, chosen, finalists),
        samples=len(scorer.labels),
        blocks=scorer.number,
        side=folds.side,
        folds=len(folds.folds),
        notes=(*folds.notes, *missing),
    )


def best(finalists: Sequence[_Scored]) -> _Scored:
    """Return the one that the rule of this module chooses; the first of those that are equal in everything."""
    least = min(each.log_loss for each in finalists)
    tied = [each for each in finalists if each.log_loss <= least * (1 + TIED)]
    most = max(each.macro_f1 for each in tied)
    tied = [each for each in tied if each.macro_f1 >= most - TIED_F1]
    return min(tied, key=lambda each: (-len(each.members), each.seconds))


def _without_needless(scorer: _Scorer, singles: Sequence[_Scored]) -> list[_Scored]:
    """Leave out networks on a single source, except those that are better than all sources together beyond chance."""
    single = [each for each in singles if each.members[0].single_source]
    others = [each for each in singles if each.members[0].kind == "network" and not each.members[0].single_source]
    if not others:
        return list(singles)
    rival = best(others)

    def is_better(each: _Scored) -> bool:
        return scorer.drawn is not None and interval(scorer.replicates(each.losses - rival.losses))[1] < 0

    return [each for each in singles if not any(each is s for s in single) or is_better(each)]


def _blends(scorer: _Scorer, singles: Sequence[_Scored]) -> list[_Scored]:
    """The blends of the best candidates of two kinds or more, except those with a member that has no share."""
    kinds = [[each for each in singles if each.members[0].kind == kind] for kind in get_args(Kind)]
    firsts = [best(own).members[0] for own in kinds if own]
    scored = [scorer.score(chosen) for count in range(2, len(firsts) + 1) for chosen in combinations(firsts, count)]
    return [each for each in scored if min(each.blend.shares) > 0]


def _row(each: _Scored, chosen: _Scored, finalists: Sequence[_Scored], unfit: Sequence[tuple[_Scored, str]]) -> TrialRow:
    """The line of a candidate or blend in the table, with the reason why it was chosen or not."""
    least = min(f.log_loss for f in finalists)
    most = max(f.macro_f1 for f in finalists if f.log_loss <= least * (1 + TIED))
    if each is chosen:
        why = "chosen"
    elif any(each is other for other, _ in unfit):
        why = next(reason for other, reason in unfit if each is other)
    elif not any(each is f for f in finalists):
        same = [f for f in finalists if f.name == each.name]
        why = f"{same[0].members[0].steps} steps are better" if same else "not better than all sources beyond chance"
    elif each.log_loss > least * (1 + TIED):
        why = f"log loss {100 * (each.log_loss / least - 1):.0f} % above the least" if least else "log loss above 0"
    elif each.macro_f1 < most - TIED_F1:
        why = f"macro-F1 {100 * (most - each.macro_f1):.1f} points lower at equal log loss"
    else:
        why = "equal, but more members are safer" if len(chosen.members) > len(each.members) else "equal, but costs more"
    return TrialRow(
        name=each.name,
        kinds=tuple(m.kind for m in each.members),
        steps=tuple(m.steps for m in each.members),
        shares=each.blend.shares,
        temperatures=each.blend.temperatures,
        figures=each.figures,
        intervals=each.intervals,
        seconds=each.seconds,
        chosen=each is chosen,
        why=why,
        penalty=each.members[0].penalty if len(each.members) == 1 else None,
    )


def _sentence(scorer: _Scorer, chosen: _Scored, finalists: Sequence[_Scored]) -> str:
    """One sentence on what was chosen and why."""
    parts = [f"{m.name} ({m.steps} steps)" for m in chosen.members]
    if len(parts) > 1:
        parts = [f"{share:.0%} {part}" for share, part in zip(chosen.blend.shares, parts, strict=True)]
        what = f"a blend of {', '.join(parts[:-1])} and {parts[-1]}"
    else:
        what = parts[0]
    others = [each for each in finalists if each is not chosen and len(each.members) == 1]
    if not others:
        return f"chosen: {what}, the only candidate, with a log loss of {chosen.log_loss:.3f}."
    rival = min(others, key=lambda each: each.log_loss)
    text = f"chosen: {what}: log loss {chosen.log_loss:.3f}, {rival.name} {rival.log_loss:.3f}"
    if scorer.drawn is None:
        return f"{text}; all samples are in one block, so the difference may be due to chance."
    low, high = interval(scorer.replicates(chosen.losses - rival.losses))
    certain = "beyond" if low > 0 or high < 0 else "within"
    return f"{text}, a difference {certain} chance."
