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
    "gpu-like": {
        "16 workers, 0.3": (
            "a row takes 88 ms of the two cores: 54 in the task that finishes its shard, 8 in the one that reads it, 8 "
            "in the waiting worker, the rest in Ray and the driver; so they serve 23 rows/s, and 16 workers make 53",
            "shards have 2 rows here, for a run of seconds: with shards of 8 it is 56 ms, 31 of them finishing, and "
            "three cores would serve all 16; of a row's finishing scores take 20 ms and the map as 16-bit PNG 14 ms",
            "the profile says it: the tasks of finishing took all there is, and the workers waited for room",
        ),
    },
    "attention": {
        "joint connection, 256": (
            "it is the noise of turns of 20 ms: in CPU time of one thread ours takes 0.986 of the other side's",
            "in that time multiplying in place and then adding takes 0.991, multiplying and adding in place 1.002, "
            "so the sum in one pass stays; diffusers' dispatch costs 0.06 ms a call of 5.5 ms",
        ),
    },
    "train-step": {
        "time over operations, 256": (
            "small operations, beside the products that the count knows, weigh most with few tokens: a step makes 44 "
            "concatenations where FLUX makes 27, of q, k and v from halves and of their gradients",
            "the LoRA works on rows, so autograd copies no gradient behind it: 1.354 times FLUX's before, 1.325 with "
            "it, which is 1.052 over operations, in CPU time of one thread",
        ),
    },
}


def tried(bench: str, line: str) -> list[str]:
    """Facts about a line of a bench, by how it begins."""
    return [fact for begin, facts in TRIED.get(bench, {}).items() if line.startswith(begin) for fact in facts]
