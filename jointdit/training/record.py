"""Records of a training run: `loss.jsonl`, TensorBoard events, progress lines.

`loss.jsonl` stores step, loss, gradient norm and learning rate without times, so that runs can be compared. A run that
resumes at step n first removes later lines, which the interrupted run wrote after its last checkpoint.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jointdit.training.checkpoint import replacing

Report = Callable[[str], None]


class TrainingRecord:
    """Writes the record of a run, in one of its processes."""

    def __init__(self, folder: Path, start: int, steps: int, pairs_a_step: int, report: Report) -> None:
        self.folder, self.steps, self.pairs_a_step, self.report = folder, steps, pairs_a_step, report
        kept = [line for line in _lines(folder / "loss.jsonl") if line["step"] <= start]
        with replacing(folder / "loss.jsonl") as unfinished:
            unfinished.write_text("".join(f"{json.dumps(line)}\n" for line in kept))
        self.file = (folder / "loss.jsonl").open("a", encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the import of tensorboardX
            from tensorboardX import SummaryWriter

        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1, flush_secs=30)
        self.started, self.first, self.losses = time.monotonic(), start, list[float]()

    def step(self, step: int, loss: float, gradient_norm: float, learning_rate: float) -> None:
        """Record a step, counted from 1."""
        line = {"step": step, "loss": loss, "gradient_norm": gradient_norm, "learning_rate": learning_rate}
        self.file.write(f"{json.dumps(line)}\n")
        self.file.flush()
        for name, value in line.items():
            if name != "step":
                self.board.add_scalar(f"train/{name}", value, step)
        self.losses.append(loss)

    def progress(self, step: int) -> None:
        """Report a progress line: mean loss since the last one, speed, time left."""
        rate = (step - self.first) / max(time.monotonic() - self.started, 1e-9)
        hours, seconds = divmod(int((self.steps - step) / rate), 3600)
        mean = sum(self.losses) / len(self.losses)
        speed = f"{rate * self.pairs_a_step:.1f} pairs/s"
        left = f"{hours} h {seconds // 60:02d} min {seconds % 60:02d} s left"
        self.board.add_scalar("train/pairs_per_second", rate * self.pairs_a_step, step)
        self.report(f"step {step}/{self.steps}  loss {mean:.5f}  {speed}  {left}")
        self.losses.clear()

    def validation(self, step: int, scores: dict[str, float], sheet: NDArray[np.uint8]) -> None:
        """Record scores by name, and a sheet (H, W, 3)."""
        from PIL import Image

        for name, value in scores.items():
            self.board.add_scalar(f"validation/{name}", value, step)
        self.board.add_image("samples", sheet, step, dataformats="HWC")
        with replacing(self.folder / "sheets" / f"step-{step:08d}.png") as unfinished:
            Image.fromarray(sheet).save(unfinished, format="PNG")
        with (self.folder / "validation.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps({'step': step, **scores})}\n")
        self.report(f"step {step}/{self.steps}  " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items()))

    def close(self) -> None:
        """Flush and close the files."""
        self.file.close()
        self.board.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a record; a killed run can leave an incomplete last line."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
