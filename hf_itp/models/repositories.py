"""
Ask the Hub once, before loading from a repository: whether it can be reached, and at which commit it is.

Every file is then read at that commit, even if a branch moves meanwhile. And a Hub that does not answer costs one
short wait, where loading file by file would cost a long one per file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from hf_itp.models.origins import commit_of

SECONDS = 8.0
"""Time limit of one request to the Hub."""

# Seconds to wait before the second and third request, since a Hub that is down may fail at once.
_WAITS = (0.5, 2.0)
_PASSING = (408, 429, 500, 502, 503, 504)


class UnreachableError(OSError):
    """The Hub did not answer, or only with a temporary error."""


def pinned(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the commit to load as `revision`, and `local_files_only` if the Hub cannot be reached.

    Args:
        name (`str`): A Hub id; for a folder the Hub is not asked.
        options (`dict`): Options of `from_pretrained`; only `revision`, `token`, `cache_dir` and `local_files_only`
            count.

    Returns:
        `dict`: Options that replace the given ones; empty for a folder.

    Raises:
        `UnreachableError`: If the Hub does not answer, and the cache holds no commit to load instead.
        `OSError`: If there is no such repository or revision, or the caller may not see it.
    """
    if Path(name).is_dir():
        return {}
    revision, cache_dir = options.get("revision"), options.get("cache_dir")
    cached = _cached_commit(name, revision, cache_dir)
    if options.get("local_files_only") or constants.HF_HUB_OFFLINE:
        return {"local_files_only": True} | ({} if cached is None else {"revision": cached})
    try:
        commit = _answer(name, revision, options.get("token"), 0 if cached else len(_WAITS))
    except UnreachableError:
        if cached is None:
            raise
        return {"revision": cached, "local_files_only": True}
    with suppress(OSError):
        _remember(name, revision or constants.DEFAULT_REVISION, commit, cache_dir)
    return {"revision": commit}


def _remember(name: str, revision: str, commit: str, cache_dir: Any) -> None:
    """Note in the cache which commit a branch is at, as huggingface_hub does when asked for a branch."""
    if revision == commit or ".." in revision or revision.startswith("/"):
        return
    folder = repo_folder_name(repo_id=name, repo_type="model")
    note = Path(cache_dir or constants.HF_HUB_CACHE).expanduser() / folder / "refs" / revision
    if not note.is_file() or note.read_text() != commit:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(commit)


def _answer(name: str, revision: str | None, token: str | bool | None, retries: int) -> str:
    started = time.monotonic()
    for wait in (*_WAITS[:retries], None):
        try:
            found = HfApi(endpoint=constants.ENDPOINT).model_info(
                name, revision=revision, token=token, timeout=SECONDS
            )
            return str(found.sha)
        except HFValidationError as error:
            raise OSError(f"{name!r} is not the id of a repository.") from error
        except RevisionNotFoundError as error:
            raise OSError(f"it has no revision {revision!r}.") from error
        except (HTTPError, OSError) as error:
            response = getattr(error, "response", None)
            status = None if response is None else response.status_code
            if status is not None and status not in _PASSING:
                raise OSError(_refusal(name, error)) from error
            if wait is None or time.monotonic() - started > 1 + wait:
                what = f"did not answer ({type(error).__name__})" if status is None else f"answered {status}"
                raise UnreachableError(
                    f"it cannot be reached: {constants.ENDPOINT} {what}, and the cache does not hold it."
                ) from error
        time.sleep(wait)
    raise AssertionError("the last question is answered or raises")


def _refusal(name: str, error: Exception) -> str:
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no {name!r} on {constants.ENDPOINT}, or it is private."
    message = error.server_message if isinstance(error, HfHubHTTPError) else None
    return f"the Hub refused ({message or str(error).strip().splitlines()[0]})."


def _cached_commit(name: str, revision: str | None, cache_dir: Any) -> str | None:
    commit = commit_of(name, revision, cache_dir)
    # A commit that was asked for by its hash need not be in the cache.
    return commit if commit is not None and commit_of(name, commit, cache_dir, read=True) else None
