"""A server on 127.0.0.1 that answers the Hub's client as the Hub does, from folders on disk."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class HubServer:
    """Repositories by id, each with its commits by name: {"me/model": {"main": folder, "v1": folder}}."""

    repositories: Mapping[str, Mapping[str, Path]]
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def commit(self, repository: str, revision: str) -> str:
        """Return the commit that a branch, a tag or a commit means."""
        shas = {name: _sha(repository, name) for name in self.repositories[repository]}
        return shas.get(revision) or next(sha for sha in shas.values() if sha == revision)

    def folder(self, repository: str, commit: str) -> Path:
        """Return the folder of a commit."""
        names = self.repositories[repository]
        return next(folder for name, folder in names.items() if commit in (name, _sha(repository, name)))

    def environment(self, home: Path) -> dict[str, str]:
        """Return what makes the client talk to this server alone, with its cache in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


@contextmanager
def serve(repositories: Mapping[str, Mapping[str, Path]]) -> Iterator[HubServer]:
    """Serve `repositories` until the block ends."""
    hub = HubServer(repositories)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(path)
            try:
                content, headers = _content(hub, path)
                status = 200
            except (KeyError, StopIteration, OSError):
                content, headers, status = b'{"error": "not found"}', {"X-Error-Code": "EntryNotFound"}, 404
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _content(hub: HubServer, path: str) -> tuple[bytes, dict[str, str]]:
    if path.startswith("/api/models/"):
        words = path.removeprefix("/api/models/").split("/")
        repository, rest = "/".join(words[:2]), words[2:]
        commit = hub.commit(repository, rest[1] if len(rest) > 1 else "main")
        names = _names(hub.folder(repository, commit))
        if rest[:1] == ["tree"]:
            listed = [_entry(hub.folder(repository, commit), name) for name in names]
            return json.dumps(listed).encode(), {"Content-Type": "application/json"}
        facts = {"id": repository, "modelId": repository, "sha": commit, "private": False, "tags": []}
        facts |= {"downloads": 0, "siblings": [{"rfilename": name} for name in names]}
        return json.dumps(facts).encode(), {"Content-Type": "application/json"}
    owner, name, verb, revision, *rest = path.strip("/").split("/")
    if verb != "resolve":
        raise KeyError(verb)
    repository = f"{owner}/{name}"
    commit = hub.commit(repository, revision)
    content = (hub.folder(repository, commit) / "/".join(rest)).read_bytes()
    return content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit}


def _entry(folder: Path, name: str) -> dict[str, object]:
    content = (folder / name).read_bytes()
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _sha(repository: str, name: str) -> str:
    return hashlib.sha1(f"{repository}@{name}".encode()).hexdigest()
