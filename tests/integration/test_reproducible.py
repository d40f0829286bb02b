"""A sample does not depend on batch, worker or shard."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jointdit.geometry.depth import decode_depth_png
from pipelines.run.job import run_job
from tests.integration.test_tasks import image, rows_of

PROMPTS = [
    f"a {colour} sphere on a {floor} floor" for colour in ("red", "green", "blue") for floor in ("white", "gray")
]


def test_batches_of_1_and_5_by_1_worker_and_2(ray_cluster: None, make_spec, tmp_path: Path) -> None:
    def run(name: str, batch_size: int, workers: int, shard_rows: int) -> dict[str, dict]:
        spec = make_spec(
            PROMPTS,
            model={"batch_size": batch_size, "steps": 2},
            output={"uri": str(tmp_path / name), "shard_rows": shard_rows},
            resources={"workers": workers},
        )
        return {row["id"]: row for row in rows_of(spec.output.uri, run_job(spec).version)}

    single = run("single", batch_size=1, workers=1, shard_rows=6)
    batched = run("batched", batch_size=5, workers=2, shard_rows=2)
    assert list(single) == list(batched) == [f"prompts.txt:{n}/0" for n in range(len(PROMPTS))]
    for identifier, row in single.items():
        other = batched[identifier]
        assert row["seed"] == other["seed"]
        depth, other_depth = (decode_depth_png(sample["depth"]["bytes"]) for sample in (row, other))
        np.testing.assert_allclose(depth, other_depth, atol=1e-3)
        # uint8 images: rounding may move a value by one step where the floats differ by less than 1e-3.
        assert np.abs(image(row).astype(int) - image(other).astype(int)).max() <= 1
    assert len({row["seed"] for row in single.values()}) == len(PROMPTS)
