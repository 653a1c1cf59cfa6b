"""
A Hub on 127.0.0.1: real HTTP, the requests huggingface_hub 2.4 makes of models, everything in memory.

    with LoopbackHub() as hub:
        subprocess.run(..., env=os.environ | hub.environment(home))
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub.faults import Faults
from tests.hub.repositories import Commit, Repository, blob_oid

TOKEN = "hf_loopback_token_of_the_tests"
LFS_FROM = 10_000  # bytes


class LoopbackHub:
    """Server with its repositories by id, the requests it saw and the faults to come."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults = Faults()
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Return the environment in which a process takes this for the Hub. huggingface_hub reads it at import."""
        found = {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        return found | ({"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"})

    def publish(self, repo_id: str, files: dict[str, bytes], **settings: bool) -> str:
        """Put files into a repository, made if needed, without any request; return the commit's name."""
        repository = self.repositories.setdefault(repo_id, Repository(**settings))
        return repository.commit("main", "published", files, []).oid

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return the files of a repository."""
        commit = self.repositories[repo_id].at(revision)
        assert commit is not None, revision
        return commit.files


class _Handler(BaseHTTPRequestHandler):
    state: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self._body = self.rfile.read(length) if length else self._chunks()
        split = urlsplit(self.path)
        self._path, self._query = unquote(split.path), parse_qs(split.query)
        method = "GET" if self.command == "HEAD" else self.command
        self.state.requests.append((self.command, self._path))
        self._fault = self.state.faults.next(method, self._path)
        if self._fault is not None:
            time.sleep(self._fault.seconds)
            if self._fault.status is not None:
                self._send(self._fault.status, {"error": "a fault of the tests"}, code=_CODES.get(self._fault.status))
                return
        for known, pattern, handle in _ROUTES:
            match = re.fullmatch(pattern, self._path)
            if known == method and match:
                handle(self, **match.groupdict())
                return
        self._send(404, {"error": f"the loopback Hub knows no {self.command} {self._path}"})

    def _chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return b""
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self) -> Any:
        return json.loads(self._body or b"{}")

    def _send(
        self, status: int, body: Any = None, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
        self.send_response(status)
        if code is not None:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self._fault is not None and self._fault.truncated:
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content)

    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _found(self, repo: str) -> Repository | None:
        repository = self.state.repositories.get(repo)
        if repository is None or (repository.private and not self._allowed()):
            self._send(401 if repository is None and not self._allowed() else 404, code="RepoNotFound")
            return None
        return repository

    def _at(self, repo: str, revision: str) -> tuple[Repository, Commit] | None:
        repository = self._found(repo)
        if repository is None:
            return None
        commit = repository.at(revision)
        if commit is None:
            self._send(404, code="RevisionNotFound")
            return None
        return repository, commit

    def create(self) -> None:
        asked = self._json()
        if not self._allowed():
            self._send(401, {"error": "Invalid username or password."})
            return
        repo = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        url = f"{self.state.address}/{repo}"
        if repo in self.state.repositories:
            self._send(409, {"url": url, "id": repo, "error": "You already created this model repo"})
            return
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.state.repositories[repo] = Repository(private=private)
        self._send(200, {"url": url, "id": repo, "name": repo})

    def settings(self, repo: str) -> None:
        if (repository := self._found(repo)) is None:
            return
        asked = self._json()
        repository.gated = bool(asked.get("gated", repository.gated))
        repository.private = bool(asked.get("private", repository.private))
        self._send(200, asked)

    def whoami(self) -> None:
        self._send(200, {"type": "user", "name": "tester", "orgs": []}) if self._allowed() else self._send(401)

    def validate(self) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def preupload(self, repo: str, revision: str) -> None:
        if (found := self._at(repo, revision)) is None:
            return
        held = found[1].files
        files = []
        for file in self._json()["files"]:
            content = held.get(file["path"])
            large = file["size"] >= LFS_FROM
            oid = None if content is None else hashlib.sha256(content).hexdigest() if large else blob_oid(content)
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._send(200, {"files": files})

    def large_files(self, repo: str) -> None:
        objects = []
        for wanted in self._json()["objects"]:
            answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.state.large:
                answer["actions"] = {"upload": {"href": f"{self.state.address}/lfs/{wanted['oid']}"}}
            objects.append(answer)
        self._send(200, {"transfer": "basic", "objects": objects})

    def store_large(self, oid: str) -> None:
        if hashlib.sha256(self._body).hexdigest() != oid:
            self._send(400, {"error": "other content than announced"})
            return
        self.state.large[oid] = self._body
        self._send(200)

    def commit(self, repo: str, revision: str) -> None:
        if not self._allowed():
            self._send(403, {"error": "Forbidden: pass a write token"})
            return
        if (found := self._at(repo, revision)) is None:
            return
        repository, title = found[0], ""
        files: dict[str, bytes] = {}
        removed: list[str] = []
        for line in self._body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                title = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.state.large[value["oid"]]
            elif entry["key"] == "deletedFile":
                removed.append(value["path"])
            elif entry["key"] == "deletedFolder":
                removed.append(value["path"].rstrip("/") + "/")
        answer = {}
        if self._query.get("create_pr") == ["1"]:
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
            repository.refs[f"refs/pr/{number}"] = repository.refs[revision]
            revision = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.state.address}/{repo}/discussions/{number}"
        made = repository.commit(revision, title, files, removed)
        self._send(
            200,
            {
                "success": True,
                "commitOid": made.oid,
                "commitUrl": f"{self.state.address}/{repo}/commit/{made.oid}",
                "hookOutput": "",
                **answer,
            },
        )

    def info(self, repo: str, revision: str = "main") -> None:
        if (found := self._at(repo, revision)) is None:
            return
        repository, commit = found
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        about = {"private": repository.private, "gated": "manual" if repository.gated else False, "disabled": False}
        self._send(200, {"_id": repo, "id": repo, "modelId": repo, "sha": commit.oid, "siblings": siblings, **about})

    def tree(self, repo: str, revision: str, folder: str | None = None) -> None:
        if (found := self._at(repo, revision)) is None:
            return
        files = found[1].files.items()
        inside = [
            self._described(path, content) for path, content in files if path.startswith((folder or "").lstrip("/"))
        ]
        if folder and not inside:
            self._send(404, code="EntryNotFound")
        else:
            self._send(200, inside)

    def paths(self, repo: str, revision: str) -> None:
        if (found := self._at(repo, revision)) is None:
            return
        wanted = self._json()["paths"] if self._body.startswith(b"{") else parse_qs(self._body.decode())["paths"]
        self._send(200, [self._described(path, found[1].files[path]) for path in wanted if path in found[1].files])

    @staticmethod
    def _described(path: str, content: bytes) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": len(content), "oid": blob_oid(content)}

    def refs(self, repo: str) -> None:
        if (repository := self._found(repo)) is None:
            return
        names = [name for name in repository.refs if not name.startswith("refs/pr/")]
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": repository.refs[name]} for name in names
        ]
        self._send(200, {"branches": branches, "tags": [], "converts": [], "pullRequests": []})

    def branch(self, repo: str, name: str) -> None:
        if (repository := self._found(repo)) is None:
            return
        if name in repository.refs:
            self._send(409, {"error": "Reference already exists"})
            return
        start = repository.at(self._json().get("startingPoint") or "main")
        assert start is not None
        repository.refs[name] = start.oid
        self._send(200)

    def resolve(self, repo: str, revision: str, path: str) -> None:
        if (found := self._at(repo, revision)) is None:
            return
        repository, commit = found
        if repository.gated and not self._allowed():
            self._send(401, code="GatedRepo", headers={"X-Repo-Commit": commit.oid})
            return
        if path not in commit.files:
            self._send(404, code="EntryNotFound", headers={"X-Repo-Commit": commit.oid})
            return
        content = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob_oid(content)}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._send(200, content, headers=headers)
            return
        first, last = int(asked[1]), int(asked[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206, content[first : last + 1], headers=headers)


_CODES = {404: "RepoNotFound"}
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_REVISION = r"(?P<revision>(?:refs/pr/\d+|refs/heads/[^/]+|[^/]+))"
_MODELS = rf"/api/models/{_REPO}"
_ROUTES: list[tuple[str, str, Callable]] = [
    ("POST", r"/api/repos/create", _Handler.create),
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", rf"{_MODELS}/preupload/{_REVISION}", _Handler.preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.large_files),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", _Handler.store_large),
    ("POST", rf"{_MODELS}/commit/{_REVISION}", _Handler.commit),
    ("POST", rf"{_MODELS}/branch/(?P<name>[^/]+)", _Handler.branch),
    ("GET", rf"{_MODELS}/refs", _Handler.refs),
    ("GET", _MODELS, _Handler.info),
    ("GET", rf"{_MODELS}/tree/{_REVISION}(?P<folder>/.*)?", _Handler.tree),
    ("POST", rf"{_MODELS}/paths-info/{_REVISION}", _Handler.paths),
    ("PUT", rf"{_MODELS}/settings", _Handler.settings),
    ("GET", rf"{_MODELS}/revision/{_REVISION}", _Handler.info),
    ("GET", rf"/(?:datasets/)?{_REPO}/resolve/{_REVISION}/(?P<path>.+)", _Handler.resolve),
]
