"""Verify a file against the size and digest of its pin.

sha256:<hex>                     of the content: local files, and large files of the hub
git:<hex>                        git's blob hash, which the hub gives for small files
md5:<hex>                        the ETag of an object that was uploaded in one part
md5-parts:<bytes>:<hex>-<n>      the ETag of an object of n parts of <bytes> each: the MD5 of the parts' MD5s
etag:<text>                      an ETag that is not a hash (encryption with an own key, other stores): size only
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class PinnedFile:
    """One file of a pin."""

    name: str
    size: int  # bytes
    digest: str

    @property
    def decides_pixels(self) -> bool:
        """Whether the file affects the model's outputs: all files except the model card."""
        return not self.name.endswith(".md")


def mismatch(path: Path, file: PinnedFile) -> str | None:
    """Describe the difference between a file and its pin; None if there is none."""
    size = path.stat().st_size
    if size != file.size:
        return f"{size} bytes instead of {file.size}"
    digest = digest_of(path, file.digest)
    return None if digest == file.digest else f"its hash is {digest} instead of {file.digest}"


def digest_of(path: Path, like: str) -> str:
    """Return the digest of a file, of the same kind as `like`."""
    kind, _, rest = like.partition(":")
    if kind == "sha256":
        return f"sha256:{_hex(hashlib.sha256(), path)}"
    if kind == "git":
        header = f"blob {path.stat().st_size}\0".encode()
        return f"git:{_hex(hashlib.sha1(header, usedforsecurity=False), path)}"
    if kind == "md5":
        return f"md5:{_hex(hashlib.md5(usedforsecurity=False), path)}"
    if kind == "md5-parts":
        part = int(rest.partition(":")[0])
        parts = [hashlib.md5(chunk, usedforsecurity=False).digest() for chunk in _chunks(path, part)]
        whole = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
        return f"md5-parts:{part}:{whole}-{len(parts)}"
    return like


def digest_of_etag(etag: str, first_part_bytes: int | None) -> str:
    """Convert an S3 ETag to a digest. first_part_bytes: size of the first part of a multipart object, if known."""
    if re.fullmatch(r"[0-9a-f]{32}", etag):
        return f"md5:{etag}"
    if first_part_bytes and re.fullmatch(r"[0-9a-f]{32}-\d+", etag):
        return f"md5-parts:{first_part_bytes}:{etag}"
    return f"etag:{etag}"


def _hex(digest: hashlib._Hash, path: Path) -> str:
    for chunk in _chunks(path, CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(size):
            yield chunk
