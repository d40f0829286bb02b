"""The Hugging Face hub: files and terms of a repository at a commit, and their download.

The token comes only from the environment (HF_TOKEN), never from the spec. If the hub does not answer, or with
HF_HUB_OFFLINE=1, the hub's cache on this machine is used.
"""

from __future__ import annotations

import contextlib
import difflib
import glob
import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jointdit.errors import ModelError
from jointdit.loading.network_errors import network_errors, network_reason
from pipelines.model.weights.terms import Terms, terms_of_card, terms_of_readme
from pipelines.model.weights.verify import PinnedFile, digest_of
from pipelines.store.errors import TransientError

COMMIT = re.compile(r"[0-9a-f]{40}")
SECONDS = 30.0  # timeout of requests to the hub
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Repository:
    """The files and terms of a hub repository at a commit."""

    commit: str
    files: dict[str, PinnedFile]
    terms: Terms


def token() -> str | bool:
    """Return HF_TOKEN of the environment; False, for no token, if it is not set."""
    return os.environ.get("HF_TOKEN") or False


def find(label: str, name: str, revision: str | None) -> Repository:
    """Find a repository on the hub, or in the hub's cache if the hub does not answer.

    label: the field and its value, for messages. revision: a commit, tag or branch; None for the main branch.

    Raises:
        ModelError: the repository does not exist, or it is gated and the token has no access.
        TransientError: the hub does not answer, and the cache does not have the repository.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    _bound_waiting()
    try:
        info = HfApi(token=token()).model_info(name, revision=revision, files_metadata=True, timeout=SECONDS)
    except GatedRepoError:
        raise _gated(label, name) from None
    except RevisionNotFoundError:
        raise ModelError(f"{label}: the hub has no revision {revision} of it: give a commit, tag or branch.") from None
    except network_errors(HFValidationError, OSError) as error:
        if (cached := _cached(name, revision)) is not None:
            reason = network_reason(error)
            logger.warning("%s: commit %s of the hub's cache is used: %s", label, cached.commit[:12], reason)
            return cached
        subject = f"{label}{f' at {revision}' if revision else ''} is not a local folder"
        advice = f"{_did_you_mean(name)}correct the name"
        if isinstance(error, OfflineModeIsEnabled):
            advice += ", or download it on a machine with a network"
        elif isinstance(error, RepositoryNotFoundError) and token():
            advice += ", or give HF_TOKEN of an account with access"
        if isinstance(error, RepositoryNotFoundError | HFValidationError | OfflineModeIsEnabled):
            raise ModelError(f"{subject} and not an accessible model of the hub: {advice}.") from None
        raise TransientError(
            f"{subject} and not in the hub's cache, and {_endpoint()} cannot be reached ({network_reason(error)}): "
            f"{advice}, check the network, or download it on a machine with one."
        ) from error
    assert info.sha is not None, "the hub names a commit for every model"
    _remember(name, revision, info.sha)
    files = {}
    for each in info.siblings or []:
        digest = f"sha256:{each.lfs['sha256']}" if each.lfs else f"git:{each.blob_id}"
        files[each.rfilename] = PinnedFile(each.rfilename, int(each.size or 0), digest)
    card = info.card_data.to_dict() if info.card_data is not None else None
    return Repository(info.sha, files, terms_of_card(card, "the hub", bool(info.gated)))


def check_access(label: str, name: str, repository: Repository, names: list[str]) -> None:
    """Raise ModelError for a gated repository without access, unless its files are in the cache."""
    if not repository.terms.gated or is_complete(name, repository.commit, [repository.files[each] for each in names]):
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi(token=token()).auth_check(name)
    except (GatedRepoError, RepositoryNotFoundError):
        raise _gated(label, name, repository.terms) from None
    except network_errors(OSError) as error:
        raise TransientError(
            f"{label}: access to the repository cannot be checked now ({network_reason(error)})."
        ) from error


def download(label: str, name: str, commit: str, files: tuple[PinnedFile, ...]) -> Path:
    """Download files of a commit into the hub's cache, except for complete ones; returns their folder.

    Raises:
        ModelError: there is no access, or a file does not exist.
        TransientError: the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    folder = snapshot_folder(name, commit)
    if is_complete(name, commit, list(files)):
        return folder
    _bound_waiting()
    patterns = [glob.escape(file.name) for file in files]
    try:
        folder = Path(snapshot_download(name, revision=commit, allow_patterns=patterns, token=token()))
    except (GatedRepoError, RepositoryNotFoundError):
        raise _gated(label, name) from None
    except network_errors(OSError) as error:
        raise TransientError(f"{label}: cannot be downloaded from the hub now ({network_reason(error)}).") from error
    if missing := [file.name for file in files if not (folder / file.name).is_file()]:
        raise ModelError(f"{label}: the hub has no {missing[0]} at {commit}: correct the revision.")
    return folder


def range_reader(label: str, name: str, commit: str) -> Callable[[str, int, int], bytes]:
    """Return a function that reads bytes [start, stop) of a file at a commit. It raises TransientError."""
    from huggingface_hub import HfFileSystem
    from huggingface_hub.errors import EntryNotFoundError

    _bound_waiting()
    files = HfFileSystem(token=token(), skip_instance_cache=True)

    def read(file: str, start: int, stop: int) -> bytes:
        try:
            data: bytes = files.cat_file(f"{name}@{commit}/{file}", start=start, end=stop)
            return data
        except network_errors(EntryNotFoundError, OSError) as error:
            reason = network_reason(error)
            raise TransientError(f"{label}: {file} cannot be read from the hub now ({reason}).") from error

    return read


def _bound_waiting() -> None:
    """Set a timeout for the library's client, whose listings would otherwise wait for ever for a silent server."""
    from huggingface_hub import get_session, set_client_factory

    session = get_session()
    hooks = session.event_hooks
    if _limit_waiting not in hooks["request"]:
        kind, hooks = type(session), {**hooks, "request": [*hooks["request"], _limit_waiting]}
        set_client_factory(lambda: kind(event_hooks=hooks, follow_redirects=True, timeout=SECONDS))


def _limit_waiting(request: Any) -> None:
    """Set missing timeouts of a request; a hook of the client."""
    given = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        step: SECONDS if given.get(step) is None else given[step] for step in ("connect", "read", "write", "pool")
    }


def snapshot_folder(name: str, commit: str) -> Path:
    """Return the folder of a commit in the hub's cache."""
    return _repository_folder(name) / "snapshots" / commit


def is_complete(name: str, commit: str, files: list[PinnedFile]) -> bool:
    """Whether the hub's cache has all these files with their size."""
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
    """Find a repository in the hub's cache, or return None."""
    root = _repository_folder(name)
    for commit in _cached_commits(root, revision):
        folder = root / "snapshots" / commit
        listed = _listed(root / "trees" / f"{commit}.json")
        if listed is None:
            paths = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
            listed = {path.relative_to(folder).as_posix(): _pinned(folder, path) for path in paths}
        if listed:
            return Repository(commit, listed, terms_of_readme(folder / "README.md"))
    return None


def _cached_commits(root: Path, revision: str | None) -> list[str]:
    """Return candidate commits for a revision, the best first; without a revision also the newest download."""
    if revision is not None and COMMIT.fullmatch(revision):
        return [revision]
    reference = root / "refs" / (revision or "main")
    commits = [reference.read_text().strip()] if reference.is_file() else []
    if revision is None and (root / "snapshots").is_dir():
        folders = sorted((root / "snapshots").iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
        commits += [folder.name for folder in folders]
    return [commit for commit in commits if re.fullmatch(r"[0-9a-f]+", commit)]


def _remember(name: str, revision: str | None, commit: str) -> None:
    """Store the commit of a branch or tag in the hub's cache, as the library does when it downloads a branch or tag."""
    if revision is not None and (COMMIT.fullmatch(revision) or ".." in revision or revision.startswith("/")):
        return
    reference = _repository_folder(name) / "refs" / (revision or "main")
    with contextlib.suppress(OSError):  # the download reports a cache that cannot be written
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)


def _listed(path: Path) -> dict[str, PinnedFile] | None:
    """Read the listing of a commit that the library has stored; None if there is none."""
    try:
        entries: dict[str, Any] = json.loads(path.read_text())["files"]
        files = {}
        for name, each in entries.items():
            digest = f"sha256:{each['lfs_sha256']}" if each.get("lfs_sha256") else f"git:{each['blob_id']}"
            files[name] = PinnedFile(name, int(each["size"]), digest)
        return files
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _pinned(folder: Path, path: Path) -> PinnedFile:
    """Return a cached file with its digest, which is the name of its blob in the cache (SHA-256 or git's)."""
    blob = path.resolve().name
    if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", blob):
        digest = f"sha256:{blob}" if len(blob) == 64 else f"git:{blob}"
    else:
        digest = digest_of(path, "sha256:")
    return PinnedFile(path.relative_to(folder).as_posix(), path.stat().st_size, digest)


def _gated(label: str, name: str, terms: Terms | None = None) -> ModelError:
    license = f" ({terms.license})" if terms is not None and terms.license else ""
    page = f"{_endpoint()}/{name}"
    if token():
        return ModelError(
            f"{label} is gated{license} or private, and the account of HF_TOKEN has no access: accept its terms at "
            f"{page} with that account."
        )
    return ModelError(
        f"{label} is gated{license} or private, and HF_TOKEN is not set: accept its terms at {page}, create a read "
        "token, and set HF_TOKEN on the driver and on every node."
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _did_you_mean(name: str) -> str:
    """Suggest `tiny`, the name of the packaged checkpoint, for a similar name."""
    return "give tiny if you meant that, " if difflib.get_close_matches(name, ["tiny"]) else ""
