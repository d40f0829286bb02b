"""`jointdit calibrate`: histograms of the scores of a sample, and proposed thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.datasets import Overrides, SpecFile

if TYPE_CHECKING:
    from rich.text import Text

    from pipelines.run.calibrate import Calibrated, Proposal

BINS = 32
BLOCKS = " ▁▂▃▄▅▆▇█"


def calibrate(
    spec: SpecFile,
    samples: Annotated[
        int, typer.Option("-n", "--samples", min=2, help="Approximate number of samples to generate.")
    ] = 64,
    output: Annotated[
        str | None,
        typer.Option(
            "-o", "--output", metavar="URI", help="Folder of the calibration.", show_default="OUTPUT-calibration"
        ),
    ] = None,
    reject: Annotated[
        float, typer.Option(min=0.0, max=0.5, help="Fraction that each proposed threshold rejects.")
    ] = 0.05,
    overrides: Overrides = None,
) -> None:
    """Generate a sample of a job and propose thresholds for its filters, with histograms of the scores and as YAML."""
    from jobs.report import log_progress
    from pipelines.run.calibrate import calibrate as make
    from pipelines.run.calibrate import load_to_calibrate

    log_progress()
    show_calibration(make(load_to_calibrate(spec, overrides or ()), samples, output, reject))


def show_calibration(found: Calibrated) -> None:
    """Print a histogram for each threshold, with what the current and the proposed threshold reject; then the YAML."""
    from rich.text import Text

    from jobs.report import console, say

    calibration = found.calibration
    say(f"{calibration.samples} samples with scores, {calibration.quarantined} quarantined")
    for each in found.proposals:
        scores = calibration.scores[each.limit.score]
        say("")
        say(f"{each.kind}.{each.limit.field} bounds {each.limit.score}")
        bars = Text(f"{scores[0]:>10.4g} ").append_text(histogram(each, scores)).append(f" {scores[-1]:.4g}")
        console.print(bars, soft_wrap=True)
        now = "its default" if each.now is None else f"{each.now:.4g}"
        say(f"{'':>10} {now} rejects {each.rejected} of {len(scores)}; proposed {each.value:.4g}")
    for line in ["", *found.snippet.splitlines(), ""]:
        say(line)
    say(f"written to {found.uri}: calibration.json (all scores), calibration.yaml (the section above)")


def histogram(proposal: Proposal, scores: Sequence[float]) -> Text:
    """Draw BINS bins from the lowest to the highest score as blocks; red bins are rejected by the proposed threshold.

    A bin without samples is blank; a bin with one is not.
    """
    import numpy as np
    from rich.text import Text

    counts, edges = np.histogram(scores, bins=BINS)
    line = Text()
    for count, start, stop in zip(counts, edges[:-1], edges[1:], strict=True):
        rejected = stop <= proposal.value if proposal.limit.is_lower else start >= proposal.value
        line.append(BLOCKS[-(-8 * int(count) // int(counts.max()))], "red" if rejected else "green")
    return line
