"""Random texts with characters that break readers."""

from __future__ import annotations

import random

WORDS = [
    "a red cube",
    "ein Würfel",
    "木の立方体",
    "🙂🙃",
    "ע ב ר",
    "e\u0301",
    "x" * 300,
    "1",
    "null",
    "#",
    "= 1 + 1",
    "\\n",
]
PIECES = [
    *WORDS,
    " ",
    "  ",
    ",",
    ";",
    '"',
    '""',
    "'",
    "\t",
    "{",
    "}",
    "[1]",
    "\u2028",
    "\u200b",
    "%s",
    "\x1b[31m",
    "\x7f",
]
ODD = ["\0", "a\0b", "", " ", "\n", "a\nb", "\r", "a\rb", "a\r\nb", '"', 'a "b', "\ufeffa", "\x85", "\x1c"]


def prompt(random: random.Random) -> str:
    if random.random() < 0.15:
        return random.choice(ODD)
    return "".join(random.choice(PIECES) for _ in range(random.randint(1, 4)))
