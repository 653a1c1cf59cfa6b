"""
Upload a folder in one commit: all of it or nothing, and no commit if nothing changed.

Does not use `upload_folder`, which with Xet sends large folders in several commits. Knows nothing of what is in the
folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from hf_itp.errors import ArgumentError, HubError

_WAITS = (1.0, 4.0)  # seconds before the second and third attempt
_PASSING = (408, 429, 500, 502, 503, 504)
# Files of an earlier version of the checkpoint, which would be loaded in place of the new ones.
_REPLACED = (
    "*.safetensors",
    "*.index.json",
    "*.bin",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "calibration.json",
    "custom_generate/*",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.*",
    "merges.txt",
)
# Weights that run code when they are loaded.
_NEVER = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")

_T = TypeVar("_T")


def prepare_repository(
    api: HfApi,
    repo_id: str,
    *,
    private: bool | None = None,
    gated: Literal["auto", "manual"] | None = None,
    revision: str | None = None,
) -> str:
    """
    Create the repository and the branch if they are missing; return the repository's full id.

    Raises:
        `ArgumentError`: If `private` is True and the repository exists and is public.
        `HubError`: If the Hub refuses or cannot be reached.
    """
    repo_id = _asked(lambda: api.create_repo(repo_id, private=private, exist_ok=True).repo_id, repo_id)
    if private and not _asked(lambda: api.model_info(repo_id).private, repo_id):
        raise ArgumentError(
            f"`private` must come with a new or private repository, got {repo_id!r}, which is public: everyone would "
            "see what is pushed. Make it private in its settings, or push to another one."
        )
    if gated is not None:
        _asked(lambda: api.update_repo_settings(repo_id, gated=gated), repo_id)
    if revision is not None:
        _asked(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), repo_id)
    return repo_id


def upload_in_one_commit(
    api: HfApi, repo_id: str, folder: Path, message: str, *, revision: str | None = None, create_pr: bool = False
) -> CommitInfo:
    """
    Commit the folder's files, and remove those an earlier version of the checkpoint left.

    Retries when the Hub fails. If the first commit arrived and only its answer was lost, the next attempt finds
    everything in place and changes nothing. Pull requests are not retried, or there could be two.

    Raises:
        `HubError`: If the Hub refuses or cannot be reached. Nothing has changed then.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path for path in paths if not _matches(path.name, _NEVER)}

    def commit() -> CommitInfo:
        held = api.list_repo_files(repo_id, revision=None if create_pr else revision)
        stale = [path for path in held if path not in files and _matches(path, _REPLACED)]
        return api.create_commit(
            repo_id,
            [
                *(CommitOperationDelete(path) for path in stale),
                *(CommitOperationAdd(name, path) for name, path in files.items()),
            ],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
        )

    return _asked(commit, repo_id, retried=not create_pr)


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    # A pattern without a folder only matches in the root: other folders belong to the repository's owner.
    return any(fnmatch(path, pattern) and path.count("/") == pattern.count("/") for pattern in patterns)


def _asked(request: Callable[[], _T], repo_id: str, *, retried: bool = True) -> _T:
    for wait in (*(_WAITS if retried else ()), None):
        try:
            return request()
        except (HTTPError, RuntimeError) as raised:
            # Errors of large files come wrapped.
            error = raised if isinstance(raised, HTTPError) else raised.__cause__
            if not isinstance(error, HTTPError):
                raise
            response = getattr(error, "response", None)
            status = None if response is None else response.status_code
            if wait is None or (status is not None and status not in _PASSING):
                raise HubError(_explained(error, status, repo_id)) from error
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _explained(error: Exception, status: int | None, repo_id: str) -> str:
    remedies = {
        401: "Log in with `hf auth login`, or pass token=....",
        403: "Use a token that may write there, or push to a repository of your own.",
        404: "Correct the id, or use a token that may see it.",
        409: "Someone else is changing it. Push again.",
        412: "Someone else changed it meanwhile. Push again.",
    }
    if isinstance(error, HfHubHTTPError) and error.server_message:
        reason = error.server_message
    else:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    what = "could not be reached" if status is None else f"answered {status}"
    remedy = remedies.get(status or 0, "Check the connection and push again.")
    return f"Nothing was pushed to {repo_id!r}: the Hub {what} ({reason.rstrip('.')}). {remedy}"
