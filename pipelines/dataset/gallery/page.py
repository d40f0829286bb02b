"""The page of the gallery: index.html with inline styles and scripts, and its policy.

The policy allows the styles and scripts by their hashes. Data files and three.js are allowed only as those scripts load
them ('strict-dynamic'): markup in a text could not run even if it were parsed, which it is not. Nothing else is
fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import string
from importlib.resources import files
from typing import Any

from pipelines.dataset.gallery.blocks import BLOCK_ROWS, INDEX_ROWS, Written
from pipelines.dataset.gallery.images import NEAREST
from pipelines.ledger.entries import OUTCOMES
from pipelines.ledger.versions import Version
from pipelines.spec.job import JobSpec, PrepareSpec

# In the order they run: each defines one object and uses those before it.
PROGRAMS = ("data", "colours", "depth", "selection", "card", "grid", "panel", "compare", "points", "detail", "main")


def render(version: Version, folder: str, written: Written, beside_dataset: bool) -> bytes:
    """Return the page for the data files in `folder`. `beside_dataset`: whether the dataset is one folder up."""
    page = files(__package__).joinpath("page")
    style = page.joinpath("style.css").read_text(encoding="utf-8")
    programs = [page.joinpath(f"{name}.js").read_text(encoding="utf-8") for name in PROGRAMS]
    template = string.Template(page.joinpath("index.html").read_text(encoding="utf-8"))
    text = template.substitute(
        title=html.escape(version.spec.name),
        stamp=stamp_tag(version),
        style_source=_source(style),
        script_sources=" ".join(_source(program) for program in programs),
        style=style,
        settings=_json_in_html(_settings(version, folder, written, beside_dataset)),
        programs="\n".join(f"<script>{program}</script>" for program in programs),
    )
    return text.encode("utf-8", "replace")


def stamp_tag(version: Version) -> str:
    """Return the tag that says which version a page shows."""
    return f'<meta name="dataset-version" content="{_stamp(version)}">'


def _stamp(version: Version) -> str:
    return f"{version.number} · {version.created}"


def _settings(version: Version, folder: str, written: Written, beside_dataset: bool) -> dict[str, Any]:
    spec = version.spec
    return {
        "name": spec.name,
        "folder": folder,
        "dataset": "../" if beside_dataset else None,
        "facts": {"task": spec.task, "version": _stamp(version)} | _partial(version) | _making(spec),
        "outcomes": OUTCOMES,
        "counts": [version.counts.get(outcome, 0) for outcome in OUTCOMES],
        "shown": [written.shown[outcome] for outcome in OUTCOMES],
        "indexes": written.indexes,
        "indexRows": INDEX_ROWS,
        "blockRows": BLOCK_ROWS,
        "aspect": min(2.0, max(0.5, written.aspect)),
        "nearest": NEAREST,
        "edgeThreshold": spec.output.points.edge_threshold,
    }


def _partial(version: Version) -> dict[str, str]:
    return {"partial": f"{version.left_out} planned samples are left out"} if version.is_partial else {}


def _making(spec: JobSpec) -> dict[str, str]:
    if isinstance(spec, PrepareSpec):
        return {"teachers": " + ".join(spec.teachers)}
    scheduler = f" of {spec.model.scheduler}" if spec.model.scheduler != "euler" else ""
    refresh = f", condition_refresh {spec.model.condition_refresh}" if spec.model.condition_refresh != 1 else ""
    return {
        "model": spec.model.label,
        "sampling": f"{spec.model.steps} steps{scheduler}, guidance {spec.model.guidance}{refresh}",
        "seed": str(spec.seed),
    }


def _json_in_html(value: object) -> str:
    """Return JSON that cannot close the HTML element around it."""
    return json.dumps(value).replace("<", "\\u003c")


def _source(content: str) -> str:
    """Return the source expression that allows an inline style or script in the policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode('ascii')}'"
