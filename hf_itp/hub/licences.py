"""The licence that a model's or a data set's own card states."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from huggingface_hub import RepoCard, hf_hub_download
from huggingface_hub.errors import HFValidationError, HTTPError

from hf_itp.embedded.names import POLICY_ID, POLICY_LICENSE

_SECONDS = 5.0


def licence_of(repo_id: str | None, repo_type: Literal["model", "dataset"] = "model") -> str | None:
    """Return the licence in the metadata of a repository's card; `None` if there is none or it cannot be read."""
    if repo_id is None:
        return None
    if repo_id == POLICY_ID:
        return POLICY_LICENSE
    try:
        file = hf_hub_download(repo_id, "README.md", repo_type=repo_type, etag_timeout=_SECONDS)
        stated = RepoCard(Path(file).read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except (HTTPError, HFValidationError, OSError, ValueError):
        # Offline, gated, without a card: not known.
        return None
    licence = stated.get("license")
    return licence if isinstance(licence, str) else None
