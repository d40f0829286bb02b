"""A disk that is too small, and can be made larger: a tmpfs, where this user may mount one."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SmallDisk:
    """A mounted file system of a fixed size."""

    folder: Path

    def grow(self, size: str) -> None:
        """Give it more room; what is on it stays."""
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[SmallDisk | str]:
    """A disk of `size` (such as "512k") at `folder`, or why there can be none."""
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
        )
    except FileNotFoundError:
        yield "there is no mount command"
        return
    if done.returncode != 0:
        yield " ".join(done.stderr.split()) or f"mount ended with {done.returncode}"
        return
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)
