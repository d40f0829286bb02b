"""Local weights, and their SHA-256 hashes, which are cached."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

from pipelines.model.weights.selection import SUFFIXES
from pipelines.model.weights.verify import PinnedFile, digest_of

REMEMBERED_BYTES = 1 << 26  # hashes of files from this size on are cached


def checkpoint_folder(name: str) -> Path:
    """Return the folder of a model name; "tiny" is the packaged checkpoint."""
    return Path(str(files("jointdit"))) / "tiny" / "checkpoint" if name == "tiny" else Path(name)


def local_files(folder: Path) -> list[Path]:
    """List weights, configs and tokenizers, without the model card, images and hidden files."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and decides_pixels(path.relative_to(folder)))


def decides_pixels(relative: Path) -> bool:
    """Whether a file of a checkpoint affects the model's outputs."""
    hidden = any(part.startswith(".") for part in relative.parts)
    return not hidden and relative.suffix in SUFFIXES


def hashed(root: Path, paths: list[Path]) -> tuple[PinnedFile, ...]:
    """Return files with their SHA-256, named relative to the root."""
    with ThreadPoolExecutor(8) as pool:  # hashlib releases the interpreter lock
        digests = list(pool.map(_sha256, paths))
    return tuple(
        PinnedFile(path.relative_to(root).as_posix(), path.stat().st_size, digest)
        for path, digest in zip(paths, digests, strict=True)
    )


def cache_folder() -> Path:
    """Return this node's folder for weights: JOINTDIT_CACHE, or jointdit in the user's cache folder."""
    given = os.environ.get("JOINTDIT_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "jointdit"


def _sha256(path: Path) -> str:
    """Return the digest of a file; that of a large file is cached by path, size and modification time."""
    stat = path.stat()
    if stat.st_size < REMEMBERED_BYTES:
        return digest_of(path, "sha256:")
    key = json.dumps([str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino])
    memory = cache_folder() / "hashes" / hashlib.sha256(key.encode()).hexdigest()
    with contextlib.suppress(OSError):
        return memory.read_text()
    digest = digest_of(path, "sha256:")
    with contextlib.suppress(OSError):  # without the cache the file is hashed again
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary = memory.with_name(f"{memory.name}.{os.getpid()}")
        temporary.write_text(digest)
        os.replace(temporary, memory)
    return digest
