"""From images to the latents that training reads: prepare and encode as jobs on Ray with outputs on S3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.dataset.validation.validate import validate
from pipelines.run.job import run_job
from pipelines.spec.job import load_spec
from pipelines.training.encoded import LatentPairs
from pipelines.training.spec import DataSpec
from tests.s3_server import S3Server
from tests.small_models import save_captioner, save_depth_anything


@pytest.mark.slow
def test_prepare_and_encode_on_ray(ray_cluster: None, s3: S3Server, tmp_path: Path) -> None:
    photos, random = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    for number in range(3):
        coarse = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 32)).save(photos / f"{number}.png")
    (photos / "broken.png").write_bytes(b"\x89PNG and no more")
    save_depth_anything(tmp_path / "teacher")
    save_captioner(tmp_path / "captioner")
    bucket = s3.make_bucket()
    shared: dict[str, Any] = {"quality": {"max_quarantined_fraction": 1.0}, "resources": {"workers": 1}}
    teachers = {"teachers": [str(tmp_path / "teacher")], "captioner": str(tmp_path / "captioner")}
    prepare = {
        **{"task": "prepare", "caption_length": 8, "model": {"batch_size": 2}},
        **{"input": {"uri": str(photos)}, "output": {"uri": f"{bucket}/prepared", "shard_rows": 2}},
    }
    summary = run_job(load_spec({**prepare, **teachers, **shared}))
    assert summary.counts_now == {"kept": 3, "rejected": 0, "quarantined": 1}
    assert validate(f"{bucket}/prepared").problems == []

    columns = {"image": "rgb", "depth": "depth", "prompt": "prompt"}
    encode = {
        **{"task": "encode", "model": {"name": "tiny", "batch_size": 2}, "buckets": [[32, 48]]},
        "input": {
            **{"uri": f"{bucket}/prepared", "columns": columns},
            "depth": {"kind": "disparity", "invalid": None},
        },
        "output": {"uri": f"{bucket}/encoded", "shard_rows": 2},
    }
    summary = run_job(load_spec({**encode, **shared}))
    assert summary.counts_now == {"kept": 3, "rejected": 0, "quarantined": 0}
    assert validate(f"{bucket}/encoded").problems == []
    latents = LatentPairs(DataSpec(kind="encoded", uri=(f"{bucket}/encoded",)).as_input(), "tiny")
    assert sum(latents.blocks()) == 3
    (first, *_) = latents.read([0], (32, 48))
    assert first.rgb.shape == first.disparity.shape
    assert first.rgb.isfinite().all()
