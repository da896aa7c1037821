"""A hub on loopback that speaks Hugging Face's and ModelScope's protocols, and misbehaves on request.

    with FakeHub() as server:
        server.add("org/name", {"config.json": b"{}", "model.safetensors": data})
        server.faults.cut_after["model.safetensors"] = [1000]      # the first answer ends after 1000 bytes

Everything that was asked is in `server.requests`.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest

BLOCK_BYTES = 64 << 10


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Repo:
    files: dict[str, bytes]
    lfs: set[str]

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted((p, sha256(d)) for p, d in self.files.items())).encode()).hexdigest()

    def digest(self, path: str) -> str:
        return sha256(self.files[path]) if path in self.lfs else git_sha1(self.files[path])


@dataclass
class Request:
    method: str
    path: str  # the file's path inside its repository, or the address for what is no file
    headers: dict[str, str]  # names in lower case
    start: int = 0  # first byte asked for
    sent: int = 0  # body bytes handed to the network


@dataclass
class Faults:
    """Dictionaries are keyed by a file's path or, for what is no file, 'list'; lists are used up from the front."""

    statuses: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    storage_statuses: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    wrong_byte: dict[str, int] = field(default_factory=dict)  # how many answers carry one
    announce: dict[str, int] = field(default_factory=dict)  # a false Content-Length
    chunked_extra: dict[str, bytes] = field(default_factory=dict)  # no length announced, and more bytes than listed
    content_range: dict[str, str] = field(default_factory=dict)
    ignore_range: bool = False
    always_416: bool = False
    etag: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.0  # before each block
    needs_token: str | None = None
    redirect_to: str | None = None  # another server's address: files are fetched from there
    extra_entries: list[dict[str, object]] = field(default_factory=list)  # in Hugging Face's tree
    extra_files: list[dict[str, object]] = field(default_factory=list)  # in ModelScope's list
    listing: object = None  # answered in place of the list of files


class FakeHub:
    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.faults = Faults()
        self.on_block: Callable[[Request], None] = lambda request: None
        self.idle = threading.Condition()
        self.answering = 0  # requests whose answer is under way
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def add(self, repo_id: str, files: dict[str, bytes], lfs: set[str] | None = None) -> Repo:
        """Publish a repository; weights are LFS files unless `lfs` says which are."""
        chosen = {path for path in files if path.endswith((".safetensors", ".bin", ".gguf", ".model"))}
        self.repos[repo_id] = Repo(dict(files), chosen if lfs is None else lfs)
        return self.repos[repo_id]

    def fetched(self, path: str | None = None) -> int:
        """Body bytes sent for a file, or for all of them."""
        return sum(r.sent for r in self.requests if r.path == path or (path is None and not r.path.startswith("/")))

    def settled(self) -> int:
        """`fetched` when nobody is answered any more: an answer outlives its client for a block or two."""
        with self.idle:
            assert self.idle.wait_for(lambda: not self.answering, timeout=30)
        return self.fetched()

    def asked_for(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path and request.method == "GET"]

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

        def setup(self) -> None:
            super().setup()
            # Bytes that wait in the kernel are lost with a killed client; a small buffer keeps their number honest.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 << 10)

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            with hub.idle:
                hub.answering += 1
            try:
                self._route()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with hub.idle:
                    hub.answering -= 1
                    hub.idle.notify_all()

        def _route(self) -> None:
            address = urlsplit(self.path)
            parts = [unquote(part) for part in address.path.split("/")[1:]]
            query = {key: values[0] for key, values in parse_qs(address.query).items()}
            if parts[:2] == ["api", "models"]:
                self._huggingface_api("/".join(parts[2:4]), parts[4], parts[5])
            elif parts[:3] == ["api", "v1", "models"]:
                repo_id = "/".join(parts[3:5])
                if parts[-1] == "files":
                    self._modelscope_files(repo_id, query.get("Revision", ""))
                else:
                    self._file(repo_id, query["FilePath"])
            elif parts[:1] == ["storage"]:
                self._file("/".join(parts[1:3]), "/".join(parts[3:]), is_storage=True)
            elif len(parts) > 3 and parts[2] == "resolve":
                self._file("/".join(parts[:2]), "/".join(parts[4:]))
            else:
                self._json(404, {}, {})

        def _record(self, path: str) -> Request:
            request = Request(self.command, path, {name.lower(): text for name, text in self.headers.items()})
            hub.requests.append(request)
            return request

        def _planned(self, key: str, statuses: dict[str, list[tuple[int, dict[str, str]]]]) -> bool:
            if planned := statuses.get(key):
                status, headers = planned.pop(0)
                self._json(status, {}, headers)
                return True
            return False

        def _refused(self, key: str) -> bool:
            if self._planned(key, hub.faults.statuses):
                return True
            token = hub.faults.needs_token
            if token and self.headers.get("Authorization") != f"Bearer {token}":
                self._json(403 if "Authorization" in self.headers else 401, {}, {"X-Error-Code": "GatedRepo"})
                return True
            return False

        def _huggingface_api(self, repo_id: str, what: str, revision: str) -> None:
            self._record(self.path)
            if self._refused("list"):
                return
            repo = hub.repos.get(repo_id)
            if repo is None:
                self._json(404, {"error": "no such repo"}, {"X-Error-Code": "RepoNotFound"})
            elif revision not in ("main", repo.commit):
                self._json(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
            elif what == "revision":
                siblings = [{"rfilename": path} for path in repo.files]
                self._json(200, {"id": repo_id, "sha": repo.commit, "siblings": siblings}, {})
            else:
                entries: list[object] = []
                for path, data in repo.files.items():
                    entry: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
                    if path in repo.lfs:
                        entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
                    entries.append(entry)
                entries.append({"type": "directory", "path": "folder", "size": 0, "oid": "0" * 40})
                listing = hub.faults.listing
                self._json(200, entries + hub.faults.extra_entries if listing is None else listing, {})

        def _modelscope_files(self, repo_id: str, revision: str) -> None:
            self._record(self.path)
            if self._refused("list"):
                return
            repo = hub.repos.get(repo_id)
            if repo is None or revision != "master":
                self._json(404, {"Code": 10010205001, "Success": False, "Message": "model not exist"}, {})
                return
            files = [
                {"Name": path.split("/")[-1], "Path": path, "Type": "blob", "Size": len(data), "Sha256": sha256(data)}
                for path, data in repo.files.items()
            ]
            files.append({"Name": "folder", "Path": "folder", "Type": "tree", "Size": 0, "Sha256": ""})
            answer = {"Code": 200, "Success": True, "Data": {"Files": [*files, *hub.faults.extra_files]}}
            self._json(200, answer if hub.faults.listing is None else hub.faults.listing, {})

        def _file(self, repo_id: str, path: str, is_storage: bool = False) -> None:
            request = self._record(path)
            if self._planned(path, hub.faults.storage_statuses) if is_storage else self._refused(path):
                return
            repo = hub.repos.get(repo_id)
            if repo is None or path not in repo.files:
                self._json(404, {}, {"X-Error-Code": "EntryNotFound"})
                return
            digest = hub.faults.etag.get(path, repo.digest(path))
            if hub.faults.redirect_to and not is_storage:
                self.send_response(302)
                self.send_header("Location", f"{hub.faults.redirect_to}/storage/{repo_id}/{quote(path)}")
                self.send_header("X-Repo-Commit", repo.commit)
                self.send_header("X-Linked-Etag", f'"{digest}"')
                self.send_header("X-Linked-Size", str(len(repo.files[path])))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            # A storage's own tag may look like a hash and is none of the content.
            self._body(request, repo, path, f'"{"5" * 64}"' if is_storage else f'"{digest}"')

        def _body(self, request: Request, repo: Repo, path: str, etag: str) -> None:
            faults, data = hub.faults, repo.files[path]
            asked = self.headers.get("Range", "")
            if self.headers.get("If-Range", etag) != etag or faults.ignore_range:
                asked = ""
            request.start = start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            if asked and (faults.always_416 or start >= len(data)):
                self._json(416, {}, {"Content-Range": f"bytes */{len(data)}"})
                return
            self.send_response(206 if asked else 200)
            self.send_header("ETag", etag)
            self.send_header("X-Repo-Commit", repo.commit)
            self.send_header("Accept-Ranges", "bytes")
            if asked:
                honest = f"bytes {start}-{len(data) - 1}/{len(data)}"
                self.send_header("Content-Range", faults.content_range.get(path, honest))
            extra = faults.chunked_extra.get(path)
            if extra is None:
                self.send_header("Content-Length", str(faults.announce.get(path, len(data) - start)))
            else:
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            if self.command == "HEAD":
                return
            body = data[start:] + (extra or b"")
            if faults.wrong_byte.get(path, 0) > 0:
                faults.wrong_byte[path] -= 1
                body = body[:-1] + bytes([body[-1] ^ 1])
            cuts = faults.cut_after.get(path)
            if cuts:
                body = body[: cuts.pop(0)]
                self.close_connection = True
            for offset in range(0, len(body), BLOCK_BYTES):
                time.sleep(faults.pause_s)
                block = body[offset : offset + BLOCK_BYTES]
                self.wfile.write(block)
                request.sent += len(block)
                hub.on_block(request)

        def _json(self, status: int, value: object, headers: dict[str, str]) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            for name, text in headers.items():
                self.send_header(name, text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


def isolate(monkeypatch: pytest.MonkeyPatch, folder: object, server: FakeHub) -> None:
    """Point every hub, cache and note at the test's own; nothing of the user's is touched, no model is built in."""
    monkeypatch.setattr("minicpm.hub.embedded.FOLDER", Path(f"{folder}/no-embedded"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "MINICPM_HUB"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HOME", f"{folder}/hf")
    monkeypatch.setenv("HF_HUB_CACHE", f"{folder}/hf/hub")
    monkeypatch.setenv("HF_TOKEN_PATH", f"{folder}/hf/token")
    monkeypatch.setenv("MODELSCOPE_CACHE", f"{folder}/ms")
    monkeypatch.setenv("MINICPM_HOME", f"{folder}/home")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    from huggingface_hub import constants

    # The library read these at its import, which may have happened under another test's environment.
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", f"{folder}/hf/token")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
