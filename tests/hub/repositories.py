"""Repositories of the loopback Hub: commits in memory. Knows nothing of HTTP."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass
class Commit:
    oid: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: list[Commit] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.refs["main"] = self._add("initial commit", {".gitattributes": b""})

    def at(self, revision: str) -> Commit | None:
        """Return the commit of a branch, a pull request or a commit's own name."""
        oid = self.refs.get(revision.removeprefix("refs/heads/"), revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)

    def commit(self, revision: str, title: str, files: dict[str, bytes], removed: list[str]) -> Commit:
        """Commit all files at once: a commit is complete or does not exist."""
        before = self.at(revision)
        assert before is not None
        kept = {
            path: content
            for path, content in before.files.items()
            if not any(path == gone or (gone.endswith("/") and path.startswith(gone)) for gone in removed)
        }
        self.refs[revision] = self._add(title, kept | files)
        return self.commits[-1]

    def _add(self, title: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {title}".encode()).hexdigest()
        self.commits.append(Commit(oid, title, files))
        return oid


def blob_oid(content: bytes) -> str:
    """Return git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
