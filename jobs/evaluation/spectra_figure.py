"""The figure of the branches' spectra: power by frequency and step, and the share of high frequencies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from jointdit.evaluation.charts import Line, line_chart, side_by_side

if TYPE_CHECKING:
    from jointdit.evaluation.spectra import BranchSpectra

EARLY, LATE = np.array([70, 110, 200]), np.array([220, 60, 40])  # colours of the first and the last step
RGB_COLOUR, DEPTH_COLOUR = (200, 60, 40), (40, 90, 180)
CURVES = 5  # steps drawn in a chart of spectra


def spectra_figure(spectra: BranchSpectra) -> Image.Image:
    """Draw four charts: each branch's spectrum at some steps, and both branches' share of high frequencies."""
    steps = len(spectra.noise_level)
    drawn = np.unique(np.linspace(0, steps - 1, min(CURVES, steps)).round().astype(int))
    radii = np.arange(len(spectra.counts))
    charts = []
    for branch, title in (("rgb", "RGB branch"), ("depth", "depth branch")):
        lines = [
            Line(radii[1:], spectra.clean[branch][step][1:], _between(step / max(1, steps - 1)), f"step {step + 1}")
            for step in drawn
        ]
        charts.append(line_chart(title, "cycles an image", "power of the clean estimate", lines, log_y=True))
    for of, label in (("clean", "clean estimate"), ("velocity", "velocity")):
        shares = [
            Line(np.arange(1, steps + 1), spectra.high_share(branch, of), colour, branch)
            for branch, colour in (("rgb", RGB_COLOUR), ("depth", DEPTH_COLOUR))
        ]
        charts.append(line_chart(f"high frequencies, {label}", "step", "share of energy", shares))
    return side_by_side(charts)


def _between(share: float) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in EARLY + share * (LATE - EARLY))
    return red, green, blue
