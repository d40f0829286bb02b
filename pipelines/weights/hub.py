"""The Hugging Face hub: which files a repository has at a commit, under what terms, and their download.

The token comes from the environment alone (HF_TOKEN), and never from the spec. Without a network (or with
HF_HUB_OFFLINE=1) the hub's own cache on this machine is asked.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jointdit.errors import ModelError, TransientError
from pipelines.weights.terms import Terms, terms_of_card, terms_of_readme
from pipelines.weights.verify import PinnedFile, digest_of

COMMIT = re.compile(r"[0-9a-f]{40}")
SECONDS = 30.0  # for an answer of the hub
OFFLINE_ADVICE = "correct the name, or download it on a machine with a network"


@dataclass(frozen=True)
class Repository:
    """What the hub has under a name."""

    commit: str
    files: dict[str, PinnedFile]
    terms: Terms


def token() -> str | bool:
    """HF_TOKEN of the environment; False, which sends none, where it is not set."""
    return os.environ.get("HF_TOKEN") or False


def find(what: str, name: str, revision: str | None) -> Repository:
    """Ask the hub, or its cache where it cannot be reached.

    what: the field and its value, for the messages. revision: a commit, tag or branch; None for the main branch.

    Raises:
        ModelError: neither has it, or it is gated and the token does not open it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi(token=token()).model_info(name, revision=revision, files_metadata=True, timeout=SECONDS)
    except GatedRepoError:
        raise _gated(what, name) from None
    except RevisionNotFoundError:
        raise ModelError(f"{what}: the hub has no revision {revision} of it: give a commit, tag or branch.") from None
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        if (cached := _cached(name, revision)) is not None:
            return cached
        if isinstance(error, RepositoryNotFoundError) and token():
            advice = "correct the name, or give HF_TOKEN of an account that may see it"
        else:
            advice = OFFLINE_ADVICE if isinstance(error, OfflineModeIsEnabled) else "correct the name"
        at = f" at {revision}" if revision else ""
        raise ModelError(
            f"{what}{at} is no folder here, and no model of the hub that can be reached: {advice}."
        ) from None
    assert info.sha is not None, "the hub names a commit for every model"
    found = {}
    for each in info.siblings or []:
        digest = f"sha256:{each.lfs['sha256']}" if each.lfs else f"git:{each.blob_id}"
        found[each.rfilename] = PinnedFile(each.rfilename, int(each.size or 0), digest)
    card = info.card_data.to_dict() if info.card_data is not None else None
    return Repository(info.sha, found, terms_of_card(card, "the hub", bool(info.gated)))


def check_access(what: str, name: str, found: Repository, names: list[str]) -> None:
    """Refuse a gated repository that this token does not open, unless its files are here. Raises ModelError."""
    if not found.terms.gated or is_complete(name, found.commit, [found.files[each] for each in names]):
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        HfApi(token=token()).auth_check(name)
    except (GatedRepoError, RepositoryNotFoundError):
        raise _gated(what, name, found.terms) from None
    except (HfHubHTTPError, OSError) as error:
        raise TransientError(f"{what}: the hub does not say whether it may be read ({_one_line(error)}).") from error


def download(what: str, name: str, commit: str, files: tuple[PinnedFile, ...]) -> Path:
    """Bring files of a commit into the hub's cache; returns their folder. Whole files are not downloaded again.

    Raises:
        ModelError: they may not be read, or are not there. TransientError: the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    folder = snapshot_folder(name, commit)
    if is_complete(name, commit, list(files)):
        return folder
    patterns = [glob.escape(file.name) for file in files]
    try:
        folder = Path(snapshot_download(name, revision=commit, allow_patterns=patterns, token=token()))
    except (GatedRepoError, RepositoryNotFoundError):
        raise _gated(what, name) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise TransientError(f"{what}: cannot be downloaded from the hub now ({_one_line(error)}).") from error
    if missing := [file.name for file in files if not (folder / file.name).is_file()]:
        raise ModelError(f"{what}: the hub has no {missing[0]} at {commit}: correct the revision.")
    return folder


def range_reader(what: str, name: str, commit: str) -> Callable[[str, int, int], bytes]:
    """What reads bytes [start, stop) of a repository's file at a commit. It raises TransientError."""
    from huggingface_hub import HfFileSystem
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    files = HfFileSystem(token=token(), skip_instance_cache=True)

    def read(file: str, start: int, stop: int) -> bytes:
        try:
            data: bytes = files.cat_file(f"{name}@{commit}/{file}", start=start, end=stop)
            return data
        except (HfHubHTTPError, EntryNotFoundError, OSError) as error:
            raise TransientError(f"{what}: {file} cannot be read from the hub now ({_one_line(error)}).") from error

    return read


def snapshot_folder(name: str, commit: str) -> Path:
    """Where the hub's cache keeps a commit."""
    return _repository_folder(name) / "snapshots" / commit


def is_complete(name: str, commit: str, files: list[PinnedFile]) -> bool:
    """Whether the hub's cache has all these files at their size."""
    folder = snapshot_folder(name, commit)
    return all(
        (folder / file.name).is_file() and (folder / file.name).stat().st_size == file.size
        for file in files
        if file.decides_pixels
    )


def _repository_folder(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def _cached(name: str, revision: str | None) -> Repository | None:
    """What the cache knows of a repository, or None."""
    root = _repository_folder(name)
    commit = revision or "main"
    if not COMMIT.fullmatch(commit):
        reference = root / "refs" / commit
        if not reference.is_file():
            return None
        commit = reference.read_text().strip()
    folder = root / "snapshots" / commit
    listed = _listed(root / "trees" / f"{commit}.json")
    if listed is None:
        paths = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
        listed = {path.relative_to(folder).as_posix(): _pinned(folder, path) for path in paths}
    return Repository(commit, listed, terms_of_readme(folder / "README.md")) if listed else None


def _listed(path: Path) -> dict[str, PinnedFile] | None:
    """The hub's own listing of a commit, as its library keeps it."""
    try:
        entries: dict[str, Any] = json.loads(path.read_text())["files"]
        found = {}
        for name, each in entries.items():
            digest = f"sha256:{each['lfs_sha256']}" if each.get("lfs_sha256") else f"git:{each['blob_id']}"
            found[name] = PinnedFile(name, int(each["size"]), digest)
        return found
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _pinned(folder: Path, path: Path) -> PinnedFile:
    """A cached file: the cache names the blob that it points to by its hash, SHA-256 or git's."""
    blob = path.resolve().name
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", blob):
        digest = f"sha256:{blob}" if len(blob) == 64 else f"git:{blob}"
    else:
        digest = digest_of(path, "sha256:")
    return PinnedFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest)


def _gated(what: str, name: str, terms: Terms | None = None) -> ModelError:
    from huggingface_hub import constants

    license = f" ({terms.license})" if terms is not None and terms.license else ""
    page = f"{constants.ENDPOINT}/{name}"
    if token():
        return ModelError(
            f"{what} is gated{license} or private, and the account of HF_TOKEN may not read it: accept its terms at "
            f"{page} with that account."
        )
    return ModelError(
        f"{what} is gated{license} or private, and HF_TOKEN is not set: accept its terms at {page}, make a read token "
        "there, and set HF_TOKEN on the driver and on every node."
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
