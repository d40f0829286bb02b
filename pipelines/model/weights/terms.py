"""Licence of weights, and gating of their hub repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNKNOWN = "not known"


@dataclass(frozen=True)
class Terms:
    """The terms of weights; empty fields are not known."""

    license: str = ""  # the hub's name: apache-2.0, flux-1-dev-non-commercial-license, ...
    link: str = ""
    gated: bool | None = None  # None: not known
    told_by: str = ""

    def __str__(self) -> str:
        if not self.license:
            known = f"{UNKNOWN}: give model.license"
        else:
            where = f", {self.link}" if self.link.startswith(("http://", "https://")) else ""
            known = f"{self.license} (by {self.told_by}{where})"
        return known + ("; gated on the hub" if self.gated else "")


def terms_of_card(data: Mapping[str, Any] | None, told_by: str, gated: bool | None = None) -> Terms:
    """Return the terms in the metadata of a model card; for the licence `other`, the field license_name counts."""
    fields = {key: value for key, value in (data or {}).items() if isinstance(value, str | list)}
    license = fields.get("license") or ""
    if isinstance(license, list):
        license = ", ".join(str(each) for each in license)
    if license in ("", "other"):
        license = str(fields.get("license_name") or license)
    link = fields.get("license_link")
    return Terms(license, link if isinstance(link, str) else "", gated, told_by if license else "")


def terms_of_readme(path: Path) -> Terms:
    """Read the terms from a model card on disk; empty if there is none, or its metadata cannot be read."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        data = metadata_load(path) if path.is_file() else None
    except (OSError, ValueError, YAMLError):
        return Terms()
    return terms_of_card(data, path.name) if isinstance(data, dict) else Terms()
