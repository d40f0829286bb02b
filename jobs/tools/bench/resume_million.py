"""`resume` with a million shards: minutes of writing small files before the first look, so not part of `--all`."""

from jobs.tools.bench.resume import measure_million as measure

__all__ = ["measure"]
