"""How well scores separate right samples from wrong ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.tools.filtering.tables import percent
from pipelines.quality import Filter, decide
from pipelines.spec.quantiles import value_of

HIGHER_IS_BETTER = ("delta1", "correlation", "agreement", "inlier_ratio")  # endings of score names
REJECT = 0.02  # share of clean samples that each calibrated threshold rejects
Scores = dict[str, NDArray[np.float64]]  # (N,) by name; NaN where a sample has no score


@dataclass(frozen=True)
class Separation:
    """Scores of right and of wrong samples, by the names of a filter's scores."""

    right: Scores
    wrong: Scores

    def auc(self, score: str) -> float:
        """Return the ROC AUC: the probability that a wrong sample scores worse than a right one.

        A sample without the score counts as the worst, because no filter keeps it.
        """
        is_better_higher = score.endswith(HIGHER_IS_BETTER)
        worst = -np.inf if is_better_higher else np.inf
        right, wrong = (np.nan_to_num(scores[score], nan=worst, posinf=np.inf) for scores in (self.right, self.wrong))
        return roc_auc(wrong, right) if is_better_higher else roc_auc(right, wrong)

    def rejected(self, rule: Filter) -> tuple[float, float]:
        """Return the shares of right and of wrong samples that a filter rejects."""
        return rejected_share(rule, self.right), rejected_share(rule, self.wrong)

    def best(self, rule: Filter) -> tuple[str, float]:
        """Return the filter's score with the largest ROC AUC, and that ROC AUC."""
        return max(((name, self.auc(name)) for name in rule.scores), key=lambda item: item[1])


def roc_auc(low: NDArray[np.float64], high: NDArray[np.float64]) -> float:
    """Return the share of pairs in which a value of `high` exceeds one of `low`; ties count half."""
    above, below = high[:, None], low[None, :]
    return float(np.mean((above > below) + 0.5 * (above == below)))


def columns(samples: Sequence[Mapping[str, float]], names: Sequence[str]) -> Scores:
    """Return the scores of samples as arrays (N,) by name."""
    return {name: np.array([scores.get(name, np.nan) for scores in samples]) for name in names}


def rejected_share(rule: Filter, scores: Scores) -> float:
    """Return the share of samples that a filter rejects; it rejects samples without a score."""
    rows = zip(*(scores[name] for name in rule.scores), strict=True)
    named = ({name: None if np.isnan(v) else v for name, v in zip(rule.scores, row, strict=True)} for row in rows)
    return float(np.mean([bool(decide([rule], row, None)) for row in named]))


def calibrated(rule: Filter, clean: Scores, reject: float = REJECT) -> Filter:
    """Return the filter with thresholds that each reject a fraction of clean samples, as `jointdit calibrate` does."""
    thresholds: dict[str, Any] = {}
    for limit in rule.limits():
        values = clean[limit.score][np.isfinite(clean[limit.score])]
        quantile = float(np.quantile(values, reject if limit.is_lower else 1 - reject))
        thresholds[limit.field] = value_of(type(rule), limit, quantile)
    return type(rule).model_validate({**rule.model_dump(), **thresholds})


def rates_table(rule: Filter, clean: Mapping[str, Scores], faulty: Mapping[str, Scores], tuned: Filter) -> str:
    """Return the table of rejected shares of clean and faulty samples, at the defaults and calibrated.

    The first clean set is the reference of the ROC AUC.
    """
    lines = [
        f"| {rule.kind} | samples | ROC AUC by its best score | rejected at the defaults | rejected, calibrated |",
        "|---|---:|---|---:|---:|",
    ]
    first = next(iter(clean.values()))
    for name, scores in (*clean.items(), *faulty.items()):
        auc = ""
        if name in faulty:
            best, value = Separation(first, scores).best(rule)
            auc = f"{value:.3f}, {best}"
        shares = " | ".join(percent(rejected_share(filter_, scores)) for filter_ in (rule, tuned))
        shown = f"*clean, {name}*" if name in clean else name
        lines.append(f"| {shown} | {len(scores[rule.scores[0]])} | {auc} | {shares} |")
    limits = ", ".join(f"{limit.field} {getattr(tuned, limit.field):.3g}" for limit in rule.limits())
    return "\n".join([*lines, "", f"Calibrated: {limits}."])
