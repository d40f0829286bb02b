"""For each missed target: the limiting factor, and what was tried.

BENCH.md prints these facts. Each was measured once, on the machine that BENCH.md names. A line that meets its target
prints none of them.
"""

from __future__ import annotations

TRIED: dict[str, dict[str, tuple[str, ...]]] = {  # bench -> begin of the line's name -> facts
    "raydata": {
        "one worker": (
            "the model limits both sides: with one thread for the model and one core for everything else, Ray Data is "
            "so close to the plain loop that no engine could be 25% faster; the note on waits gives the rest",
        ),
    },
    "gpu-like": {
        "16 workers, 0.3": (
            "a row takes 88 ms of CPU time: 54 in the finish task, 8 in the read task, 8 in the worker, the rest in "
            "Ray and the driver; so two cores serve 23 rows/s, while 16 workers produce 53",
            "shards have 2 rows here, so that a run takes seconds; with shards of 8 rows a row takes 56 ms, 31 of them "
            "in finish, and three cores would serve 16 workers; in finish, scores take 20 ms and the 16-bit PNG 14 ms",
            "the profile confirms it: finish tasks used all free CPU time, and the workers waited for them",
        ),
    },
    "attention": {
        "joint connection, 256": (
            "turns of 20 ms are noisy: in CPU time of one thread ours takes 0.986 of the baseline's",
            "in CPU time, multiplying in place and then adding takes 0.991, multiplying and adding in place 1.002, so "
            "the sum in one pass stays; the dispatch of diffusers costs 0.06 ms of a call of 5.5 ms",
        ),
    },
    "train-step": {
        "time over operations, 256": (
            "small operations, which the count of matrix products leaves out, weigh most with few tokens: a step makes "
            "44 concatenations, of q, k and v of the halves and of their gradients, where FLUX makes 27",
            "the LoRA works on rows, so that autograd copies no gradient: in CPU time of one thread 1.325 times FLUX's "
            "in place of 1.354, which is 1.052 per operation",
        ),
    },
}


def tried(bench: str, line: str) -> list[str]:
    """Return the facts about a line of a bench."""
    return [fact for begin, facts in TRIED.get(bench, {}).items() if line.startswith(begin) for fact in facts]
