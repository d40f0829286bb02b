"""Of lines that are not reached: what holds them, and what was tried. BENCH.md prints these as long as they are not.

Each fact was measured once, on the machine that BENCH.md names; a line that is reached again prints none of them.
"""

from __future__ import annotations

TRIED: dict[str, dict[str, tuple[str, ...]]] = {  # bench -> how its line begins -> facts
    "raydata": {
        "one worker": (
            "the model holds both sides: with one thread for it and a core for all else, Ray Data itself comes so near "
            "to the bare loop that no engine could be a quarter faster; the note on waits says how much is left",
        ),
    },
}


def tried(bench: str, line: str) -> list[str]:
    """Facts about a line of a bench, by how it begins."""
    return [fact for begin, facts in TRIED.get(bench, {}).items() if line.startswith(begin) for fact in facts]
