"""A disk that is too small and can grow: a tmpfs, if this user may mount one."""

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
        """Enlarge the disk; its files stay."""
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[SmallDisk | str]:
    """Yield a disk of `size` (such as "512k") at `folder`, or the reason why there is none."""
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
