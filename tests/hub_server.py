"""A small Hugging Face Hub on the loopback interface: what publishing and loading ask of it, and its failures."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

ZERO = "0" * 40


@dataclass
class Repo:
    """A repository: the files of every commit, and where its branches point."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {ZERO: {}})
    refs: dict[str, str] = field(default_factory=lambda: {"main": ZERO})
    messages: list[str] = field(default_factory=list)

    def commit(self, changes: dict[str, bytes], message: str, branch: str = "main") -> str:
        files = {**self.commits[self.refs[branch]], **changes}
        sha = hashlib.sha1(repr((sorted(files.items()), self.refs[branch])).encode()).hexdigest()
        self.commits[sha], self.refs[branch] = files, sha
        self.messages.append(message)
        return sha

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


@dataclass
class Hub:
    """The state of the server, which tests read and change.

    :param token: that opens private repositories and is needed to write
    :param break_at: requests whose path holds this are cut off before they are answered
    :param break_body: answers whose path holds this are cut off in the middle
    :param inflate: by which the sizes are larger that it tells
    """

    token: str = "hf_secret"
    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    break_at: str = ""
    break_body: str = ""
    inflate: int = 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer("GET")

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_POST(self) -> None:
        self.answer("POST")

    def answer(self, method: str) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append(f"{method} {path}")
        if self.hub.break_at and self.hub.break_at in path:
            self.close_connection = True
            return
        parts = path.split("/")
        if parts[0] != "api":
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        elif parts[1] == "validate-yaml":
            self.send(200, {"errors": [], "warnings": []})
        elif parts[1:3] == ["repos", "create"]:
            self.create(json.loads(body))
        else:
            self.model("/".join(parts[2:4]), parts[4:], body)

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = bool(self.hub.break_body) and self.hub.break_body in self.path
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    def refuse(self, status: int, code: str) -> None:
        self.send(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def open(self, name: str) -> Repo | None:
        """A repository, unless there is none or it is private and the token does not fit, which look alike."""
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.authorised()):
            self.refuse(404 if self.authorised() else 401, "RepoNotFound")
            return None
        return repo

    def create(self, content: dict[str, Any]) -> None:
        if not self.authorised():
            self.send(401, {"error": "Invalid username or password."})
            return
        name = f"{content['organization']}/{content['name']}"
        status = 409 if name in self.hub.repos else 200
        self.hub.repos.setdefault(name, Repo(private=content.get("visibility") == "private"))
        self.send(status, {"url": f"http://{self.headers['Host']}/{name}", "id": name})

    def model(self, name: str, parts: list[str], body: bytes) -> None:
        repo = self.open(name)
        if repo is None:
            return
        action, revision = (parts[0], parts[1]) if parts else ("revision", "main")
        sha = repo.find(revision)
        if sha is None:
            self.refuse(404, "RevisionNotFound")
        elif action == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self.send(200, {"files": modes})
        elif action == "commit":
            self.commit(name, repo, revision, body)
        elif action == "tree":
            entries = [self.entry(path, data) for path, data in repo.commits[sha].items()]
            self.send(200, entries)
        else:
            siblings = [{"rfilename": path, "size": self.size(data)} for path, data in repo.commits[sha].items()]
            self.send(200, {"id": name, "sha": sha, "private": repo.private, "siblings": siblings})

    def entry(self, path: str, data: bytes) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": self.size(data), "oid": hashlib.sha1(data).hexdigest()}

    def size(self, data: bytes) -> int:
        return len(data) * self.hub.inflate

    def commit(self, name: str, repo: Repo, revision: str, body: bytes) -> None:
        if not self.authorised():
            self.send(403, {"error": "you may not write here"})
            return
        lines = [json.loads(line) for line in body.splitlines()]
        files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines[1:]}
        sha = repo.commit(files, lines[0]["value"]["summary"], revision)
        url = f"http://{self.headers['Host']}/{name}/commit/{sha}"
        self.send(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.open(name)
        if repo is None:
            return
        sha = repo.find(revision)
        if sha is None:
            self.refuse(404, "RevisionNotFound")
        elif path not in repo.commits[sha]:
            self.refuse(404, "EntryNotFound")
        else:
            data = repo.commits[sha][path]
            self.send(200, data, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": sha})


@contextmanager
def running_hub(port: int = 0) -> Iterator[tuple[Hub, str]]:
    """The server and its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", port), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
