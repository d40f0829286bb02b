"""How well scores tell right samples from wrong ones, and what a filter makes of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.quality import Filter, decide
from pipelines.spec.quantiles import limits_of, value_of

HIGHER_IS_BETTER = ("delta1", "correlation", "agreement", "inlier_ratio")  # ends of names of scores
Scores = dict[str, NDArray[np.float64]]  # (N,) by name; NaN where a sample has no score


@dataclass(frozen=True)
class Separation:
    """Two sets of scores that a filter is to tell apart, by the names of its scores."""

    right: Scores
    wrong: Scores

    def auc(self, score: str) -> float:
        """ROC AUC: how often a wrong sample scores worse than a right one; 0.5 says nothing, 1 never errs.

        A sample without the score counts as the worst there is: no filter keeps it.
        """
        is_better_higher = score.endswith(HIGHER_IS_BETTER)
        worst = -np.inf if is_better_higher else np.inf
        right, wrong = (np.nan_to_num(each[score], nan=worst, posinf=np.inf) for each in (self.right, self.wrong))
        return roc_auc(wrong, right) if is_better_higher else roc_auc(right, wrong)

    def rejected(self, rule: Filter) -> tuple[float, float]:
        """Shares of right and of wrong samples that a filter rejects."""
        return rejected_share(rule, self.right), rejected_share(rule, self.wrong)

    def best(self, rule: Filter) -> tuple[str, float]:
        """The score of a filter that tells the two sets apart best, and its ROC AUC."""
        return max(((name, self.auc(name)) for name in rule.scores), key=lambda found: found[1])


def roc_auc(low: NDArray[np.float64], high: NDArray[np.float64]) -> float:
    """The share of pairs in which a value of `high` exceeds one of `low`, ties counting half."""
    above, below = high[:, None], low[None, :]
    return float(np.mean((above > below) + 0.5 * (above == below)))


def columns(found: Sequence[Mapping[str, float]], names: Sequence[str]) -> Scores:
    """Scores by name, (N,)."""
    return {name: np.array([scores.get(name, np.nan) for scores in found]) for name in names}


def rejected_share(rule: Filter, scores: Scores) -> float:
    """The share of samples that a filter rejects; without a score there is no keeping."""
    rows = zip(*(scores[name] for name in rule.scores), strict=True)
    named = ({name: None if np.isnan(v) else v for name, v in zip(rule.scores, row, strict=True)} for row in rows)
    return float(np.mean([bool(decide([rule], row, None)) for row in named]))


def calibrated(rule: Filter, clean: Scores, reject: float) -> Filter:
    """The filter with each threshold where it rejects a fraction of clean samples, as `jointdit calibrate` proposes."""
    found: dict[str, Any] = {}
    for limit in limits_of(type(rule)):
        values = clean[limit.score][np.isfinite(clean[limit.score])]
        quantile = float(np.quantile(values, reject if limit.is_lower else 1 - reject))
        found[limit.field] = value_of(type(rule), limit, quantile)
    return type(rule).model_validate({**rule.model_dump(), **found})


def rates_table(rule: Filter, clean: Mapping[str, Scores], spoilt: Mapping[str, Scores], tuned: Filter) -> str:
    """What a filter rejects of clean and of spoilt samples, by name, at its defaults and calibrated, in Markdown.

    ROC AUC is against the first of the clean sets.
    """
    lines = [
        f"| {rule.kind} | samples | ROC AUC by its best score | rejected at the defaults | rejected, calibrated |",
        "|---|---:|---|---:|---:|",
    ]
    first = next(iter(clean.values()))
    for name, scores in (*clean.items(), *spoilt.items()):
        auc = ""
        if name in spoilt:
            best, value = Separation(first, scores).best(rule)
            auc = f"{value:.3f}, {best}"
        shares = " | ".join(percent(rejected_share(each, scores)) for each in (rule, tuned))
        shown = f"*clean, {name}*" if name in clean else name
        lines.append(f"| {shown} | {len(scores[rule.scores[0]])} | {auc} | {shares} |")
    limits = ", ".join(f"{limit.field} {getattr(tuned, limit.field):.3g}" for limit in limits_of(type(rule)))
    return "\n".join([*lines, "", f"Calibrated: {limits}."])


def percent(share: float) -> str:
    """A share for people."""
    return f"{share:.1%}".replace("%", " %")


def write_section(path: Path, name: str, text: str) -> None:
    """Put a text between the markers <!-- name: begin --> and end of a Markdown file, at its end where it has none."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    document = path.read_text() if path.exists() else ""
    if begin not in document:
        document = f"{document.rstrip()}\n\n{begin}\n{end}\n".lstrip()
    before, rest = document.split(begin, 1)
    after = rest.split(end, 1)[1]
    path.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")
