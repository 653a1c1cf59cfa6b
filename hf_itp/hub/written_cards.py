"""
Read back what a card says, so that a push keeps what training, or a person, wrote into it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import HFValidationError, HTTPError

from hf_itp.hub.cards import STANDARD_LIMITS, CardFacts
from hf_itp.models.origins import adapter_origins, origin_of
from hf_itp.models.public_names import without_paths

# Sections that the template writes again.
_OURS = (
    "Description", "How to use it", "Additional Arguments", "Output Type changes", "Model compatibility", "Results",
    "Calibration", "Limits",
)  # fmt: skip
_SIGNATURE = re.compile(r"\n*Written by hf-itp [^\n]*\n*\Z")
_HEADING = re.compile(r"## +(.+?) *")
_RESULTS_ON = re.compile(r"Compared with the policy before training, on (.+?)\. Intervals")
_PICTURE = re.compile(r"!\[Scaling curve\]\(([^)/]+)\)")
_INTERVAL = re.compile(r"(-?[\d.]+) to (-?[\d.]+)")
_METADATA = re.compile(r"\A\s*---.*?\n---\s*\n", re.DOTALL)
_NOT_RECORDED = "not recorded"


def read_card(text: str, folder: Path | None = None) -> CardFacts:
    """
    Return what a card says: of one of ours all of it; of another its metadata, and its text section by section.

    Args:
        text (`str`): The card, with its metadata.
        folder (`Path`, *optional*): The folder it lies in, for its picture.
    """
    try:
        card = ModelCard(text, ignore_metadata_errors=True)
    except (ValueError, TypeError, AttributeError, yaml.YAMLError):
        card = ModelCard(_METADATA.sub("", text))  # keep the text of a card whose metadata does not parse
    data, body = card.data.to_dict(), without_paths(card.text)
    is_ours = _SIGNATURE.search(body) is not None
    first, sections = _sections(_SIGNATURE.sub("", body))
    kept = {name: content for name, content in sections.items() if content and not (is_ours and name in _OURS)}
    if not is_ours:
        # The heading is the repository's name, which may be another one now.
        opening = re.sub(r"\A\s*# [^\n]*\n", "", first).strip()
        kept = ({"About": opening} if opening else {}) | {
            (f"{name} (before this push)" if name in _OURS else name): content for name, content in kept.items()
        }
    facts = CardFacts(
        "",
        base_model=_one(data.get("base_model")),
        license=_one(data.get("license")),
        language=_one(data.get("language")),
        datasets=_all(data.get("datasets")),
        extra_tags=_all(data.get("tags")),
        sections=kept,
    )
    if is_ours:
        facts.training = dict(_table(sections.get("Description", "")))
        # The metadata holds more digits than the table.
        exact = {row.metric_name: row.metric_value for row in getattr(card.data, "eval_results", None) or []}
        facts.results = [_result(row, exact) for row in _table(sections.get("Results", ""), 3)]
        found = _RESULTS_ON.search(sections.get("Results", ""))
        facts.results_on = found[1] if found and found[1] != _NOT_RECORDED else None
        limits = [line[2:].strip() for line in sections.get("Limits", "").splitlines() if line.startswith("- ")]
        facts.limits = [limit for limit in limits if limit not in STANDARD_LIMITS]
        picture = _PICTURE.search(body)
        if picture and folder is not None and (folder / picture[1]).is_file():
            facts.picture = str(folder / picture[1])
    return facts


def card_beside(policy: Any) -> CardFacts | None:
    """
    Return what the card beside a loaded policy says; `None` without one.

    Of a folder whatever card lies there; of a repository only one of ours, since another is about another model.
    """
    adapters = adapter_origins(policy)
    origin = adapters[0] if adapters else origin_of(policy)
    if origin is None:
        return None
    folder = Path(origin.name).expanduser()
    if folder.is_dir():
        file = folder / "README.md"
        return read_card(file.read_text(encoding="utf-8"), folder) if file.is_file() else None
    try:
        file = Path(hf_hub_download(origin.name, "README.md", **origin.options()))
    except (HTTPError, HFValidationError, OSError, ValueError):
        return None
    text = file.read_text(encoding="utf-8")
    return read_card(text) if _SIGNATURE.search(text) else None


def _sections(body: str) -> tuple[str, dict[str, str]]:
    """Return the text before the first heading of the second level, and the text below each."""
    texts: dict[str, list[str]] = {"": []}
    name, in_code = "", False
    for line in body.splitlines():
        in_code ^= line.lstrip().startswith("```")
        found = None if in_code else _HEADING.fullmatch(line)
        if found:
            name = found[1]
            texts.setdefault(name, [])
        else:
            texts[name].append(line)
    joined = {heading: "\n".join(lines).strip() for heading, lines in texts.items()}
    return joined.pop(""), joined


def _table(text: str, columns: int = 2) -> list[list[str]]:
    """Return the rows of a table, less its empty head."""
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if "|" in line]
    return [row for row in rows if len(row) == columns and row[0] and not set(row[0]) <= set("-: ")]


def _result(row: list[str], exact: dict[str, Any]) -> dict[str, Any]:
    name, value, interval = row
    ends = _INTERVAL.search(interval)
    return {"name": name, "value": float(exact.get(name, value))} | (
        {"low": float(ends[1]), "high": float(ends[2])} if ends else {}
    )


def _one(value: Any) -> str | None:
    value = value[0] if isinstance(value, list) and value else value
    return value if isinstance(value, str) else None


def _all(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [one for one in value or [] if isinstance(one, str)]
