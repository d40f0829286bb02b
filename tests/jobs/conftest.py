"""A folder of inputs, most of them bad, for the tests of the command line."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from pipelines.ledger.ledger import Ledger
from pipelines.model.fingerprint import fingerprint_of
from pipelines.model.identity import identify
from pipelines.spec.job import load_spec
from pipelines.store.storage import Storage
from tests.bad_inputs import (
    COLOURS,
    GREY,
    JOINT,
    PROMPTS,
    png,
)
from tests.local_job import LocalJob, make_job

__all__ = ["LocalJob", "make_job"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with small inputs, models and outputs of every kind. No test may change it."""
    folder = tmp_path_factory.mktemp("bad")
    files: dict[str, bytes] = {
        "in/prompts.txt": "".join(f"{prompt}\n" for prompt in PROMPTS).encode(),
        "in/empty.txt": b"",
        "in/empty.csv": b"",
        "in/captions.jsonl": json.dumps({"name": "a", "caption": PROMPTS[0]}).encode(),
        "in/twice.jsonl": b"".join(json.dumps({"id": "same", "prompt": p}).encode() + b"\n" for p in PROMPTS),
        "in/named.jsonl": json.dumps({"id": "prompts.txt:0", "prompt": "x"}).encode(),
        "in/paths.jsonl": b'{"image": "gone.png"}\n' * 2,
        "in/maps/a.png": png(GREY),
        "in/maps/a.txt": PROMPTS[0].encode(),
        "in/mixed/a.png": png(COLOURS),
        "in/mixed/metadata.jsonl": b"{}\n",
        "in/image.png": png(COLOURS),
        "in/text.png": b"no image",
        "in/page.html": b"<p>",
        "in/bad.parquet": b"PAR1",
        "in/bad.tar": b"x" * 2000,
        "in/cut.txt.gz": gzip.compress(b"one\ntwo\n" * 1000)[:-20],
        "no-json/model_index.json": b"{",
        "no-json/x.safetensors": b"",
        "no-size/model_index.json": b'{"default_height": "big"}',
        "no-size/x.safetensors": b"",
        "no-guidance/model_index.json": b'{"default_depth_guidance": "much"}',
        "no-guidance/x.safetensors": b"",
        "pickled/model_index.json": b"{}",
        "pickled/vae/diffusion_pytorch_model.safetensors": b"",
        "pickled/transformer/diffusion_pytorch_model.bin": b"",
        "damaged/_job.json": b"{",
        "newer/_job.json": b'{"format": 99}',
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "in" / "nothing").mkdir()
    os.mkfifo(folder / "in" / "pipe.jsonl")
    started = load_spec({**JOINT, "output": {"uri": str(folder / "started")}})
    Ledger(Storage(started.output.uri)).open_job(started, fingerprint_of(started, identify(started.model)))
    return folder
