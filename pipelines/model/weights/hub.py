"""The Hugging Face hub: which files a repository has at a commit, under what terms, and their download.

The token comes from the environment alone (HF_TOKEN), and never from the spec. Where the hub does not answer (or with
HF_HUB_OFFLINE=1) the hub's own cache on this machine is asked: what it has of the commit is used.
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
SECONDS = 30.0  # for an answer of the hub
logger = logging.getLogger(__name__)


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
    """Ask the hub, or its cache where it does not answer.

    what: the field and its value, for the messages. revision: a commit, tag or branch; None for the main branch.

    Raises:
        ModelError: neither has it, or it is gated and the token does not open it.
        TransientError: the hub does not answer, and the cache does not have it.
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
        raise _gated(what, name) from None
    except RevisionNotFoundError:
        raise ModelError(f"{what}: the hub has no revision {revision} of it: give a commit, tag or branch.") from None
    except network_errors(HFValidationError, OSError) as error:
        if (cached := _cached(name, revision)) is not None:
            reason = network_reason(error)
            logger.warning("%s: the hub's cache has commit %s, which is used: %s", what, cached.commit[:12], reason)
            return cached
        subject = f"{what}{f' at {revision}' if revision else ''} is no folder here"
        advice = f"{_did_you_mean(name)}correct the name"
        if isinstance(error, OfflineModeIsEnabled):
            advice += ", or download it on a machine with a network"
        elif isinstance(error, RepositoryNotFoundError) and token():
            advice += ", or give HF_TOKEN of an account that may see it"
        if isinstance(error, RepositoryNotFoundError | HFValidationError | OfflineModeIsEnabled):
            raise ModelError(f"{subject}, and no model of the hub that can be reached: {advice}.") from None
        raise TransientError(
            f"{subject} nor in the hub's cache, and {_endpoint()} cannot be asked for it ({network_reason(error)}): "
            f"{advice}, check the network, or download it on a machine with one."
        ) from error
    assert info.sha is not None, "the hub names a commit for every model"
    _remember(name, revision, info.sha)
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
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        HfApi(token=token()).auth_check(name)
    except (GatedRepoError, RepositoryNotFoundError):
        raise _gated(what, name, found.terms) from None
    except network_errors(OSError) as error:
        raise TransientError(
            f"{what}: the hub does not say whether it may be read ({network_reason(error)})."
        ) from error


def download(what: str, name: str, commit: str, files: tuple[PinnedFile, ...]) -> Path:
    """Bring files of a commit into the hub's cache; returns their folder. Whole files are not downloaded again.

    Raises:
        ModelError: they may not be read, or are not there. TransientError: the hub cannot be reached.
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
        raise _gated(what, name) from None
    except network_errors(OSError) as error:
        raise TransientError(f"{what}: cannot be downloaded from the hub now ({network_reason(error)}).") from error
    if missing := [file.name for file in files if not (folder / file.name).is_file()]:
        raise ModelError(f"{what}: the hub has no {missing[0]} at {commit}: correct the revision.")
    return folder


def range_reader(what: str, name: str, commit: str) -> Callable[[str, int, int], bytes]:
    """What reads bytes [start, stop) of a repository's file at a commit. It raises TransientError."""
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
            raise TransientError(f"{what}: {file} cannot be read from the hub now ({reason}).") from error

    return read


def _bound_waiting() -> None:
    """Give the library's client a timeout: its listings ask for none, and a silent server would hang them for ever."""
    from huggingface_hub import get_session, set_client_factory

    session = get_session()
    hooks = session.event_hooks
    if _limit_waiting not in hooks["request"]:
        kind, hooks = type(session), {**hooks, "request": [*hooks["request"], _limit_waiting]}
        set_client_factory(lambda: kind(event_hooks=hooks, follow_redirects=True, timeout=SECONDS))


def _limit_waiting(request: Any) -> None:
    """The client's hook for each request that is sent."""
    given = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        step: SECONDS if given.get(step) is None else given[step] for step in ("connect", "read", "write", "pool")
    }


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
    """The commits that the cache may have for a revision, the likeliest first; without one also the newest download."""
    if revision is not None and COMMIT.fullmatch(revision):
        return [revision]
    reference = root / "refs" / (revision or "main")
    found = [reference.read_text().strip()] if reference.is_file() else []
    if revision is None and (root / "snapshots").is_dir():
        folders = sorted((root / "snapshots").iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
        found += [folder.name for folder in folders]
    return [commit for commit in found if re.fullmatch(r"[0-9a-f]+", commit)]


def _remember(name: str, revision: str | None, commit: str) -> None:
    """Note in the hub's cache which commit a branch or tag is, as its library does where it downloads by these."""
    if revision is not None and (COMMIT.fullmatch(revision) or ".." in revision or revision.startswith("/")):
        return
    reference = _repository_folder(name) / "refs" / (revision or "main")
    with contextlib.suppress(OSError):  # a cache that cannot be written is a matter of the download
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)


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
    license = f" ({terms.license})" if terms is not None and terms.license else ""
    page = f"{_endpoint()}/{name}"
    if token():
        return ModelError(
            f"{what} is gated{license} or private, and the account of HF_TOKEN may not read it: accept its terms at "
            f"{page} with that account."
        )
    return ModelError(
        f"{what} is gated{license} or private, and HF_TOKEN is not set: accept its terms at {page}, make a read token "
        "there, and set HF_TOKEN on the driver and on every node."
    )


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _did_you_mean(name: str) -> str:
    """`tiny` is the one name that is no folder and no name of the hub."""
    return "give tiny if that was meant, " if difflib.get_close_matches(name, ["tiny"]) else ""
