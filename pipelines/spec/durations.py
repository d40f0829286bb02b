"""Durations as text: 90s, 30m, 12h or 7d."""

from __future__ import annotations

import re

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(text: str) -> float | None:
    """Return the seconds of a duration such as 90s, 30m, 12h or 7d, or None for any other text."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([smhd])", text.strip(), re.ASCII)
    return float(match[1]) * UNITS[match[2]] if match else None
