"""Downloads beyond their bytes: synced before the rename, retried while they advance, safe redirects."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from fake_hub import FakeHub, git_sha1, sha256
from minicpm import hub
from minicpm.errors import HubError
from minicpm.hub import transfer
from minicpm.hub.remote import RemoteFile
from minicpm.progress import Silent

NAME = "openbmb/MiniCPM-2B-dpo-bf16"
WEIGHTS = bytes(range(251)) * 400
CONFIG = b'{"architectures": ["MiniCPMForCausalLM"]}'
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
SOURCES = ["huggingface", "modelscope"]


@pytest.fixture
def repo(server: FakeHub):
    server.add("OpenBMB/MiniCPM-2B-dpo-bf16", FILES)
    return server.add(NAME, FILES)


@pytest.mark.parametrize("source", SOURCES)
def test_a_file_is_flushed_whole_before_it_gets_its_name(server, repo, tmp_path, said, monkeypatch, source):
    flushed: dict[int, int] = {}

    def fsync(handle: int) -> None:
        status = os.fstat(handle)
        unfinished = {path.stat().st_ino for path in tmp_path.rglob("*.incomplete")}
        if status.st_ino in unfinished:
            flushed[status.st_ino] = status.st_size

    monkeypatch.setattr(os, "fsync", fsync)
    folder = hub.pull(NAME, source=source, tell=said.append)
    for path, content in FILES.items():
        assert flushed.get((folder / path).stat().st_ino) == len(content)


def test_a_connection_that_breaks_often_is_given_time_as_long_as_bytes_come(server, repo, said):
    breaks = 4 * len(transfer.RETRY_DELAYS_S)
    server.faults.cut_after["model.safetensors"] = [1000] * breaks
    folder = hub.pull(NAME, tell=said.append)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert len(server.asked_for("model.safetensors")) == breaks + 1


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that a download would have waited."""
    seconds: list[float] = []
    monkeypatch.setattr(transfer, "time", SimpleNamespace(sleep=seconds.append, time=time.time))
    return seconds


def test_the_first_wait_after_bytes_came_is_the_shortest_one(server, repo, said, waits, monkeypatch):
    monkeypatch.setattr(transfer, "RETRY_DELAYS_S", (1.0, 2.0, 4.0))
    server.faults.cut_after["model.safetensors"] = [1000, 0, 0, 1000, 0]
    hub.pull(NAME, tell=said.append)
    assert waits == [1.0, 2.0, 4.0, 1.0, 2.0]


def test_a_hub_says_how_long_to_wait(server, repo, said, waits):
    server.faults.statuses["model.safetensors"] = [(503, {"Retry-After": "300"})]
    hub.pull(NAME, tell=said.append)
    assert waits == [300.0]


@pytest.mark.parametrize("path", FILES)
def test_the_rest_of_a_file_is_asked_for_only_if_it_is_still_that_file(server, repo, said, path):
    server.faults.cut_after[path] = [10]
    hub.pull(NAME, tell=said.append)
    first, second = server.asked_for(path)
    assert "if-range" not in first.headers and "range" not in first.headers
    digest = sha256(WEIGHTS) if path == "model.safetensors" else git_sha1(CONFIG)
    assert (second.headers["range"], second.headers["if-range"]) == ("bytes=10-", f'"{digest}"')


def test_a_hub_whose_tags_are_no_hashes_gets_no_condition(server, repo, said):
    """It would hold for no tag, and everything would come again."""
    server.faults.cut_after["model.safetensors"] = [1000]
    hub.pull(NAME, source="modelscope", tell=said.append)
    second = server.asked_for("model.safetensors")[1]
    assert second.headers["range"] == "bytes=1000-" and "if-range" not in second.headers


@pytest.mark.parametrize("status", [401, 403])
def test_a_signed_link_that_expired_is_asked_for_again(server, repo, said, status):
    """The storage behind the hub refuses; the hub's next redirect is another link."""
    with FakeHub() as storage:
        storage.add(NAME, FILES)
        server.faults.redirect_to = storage.url
        storage.faults.storage_statuses["model.safetensors"] = [(status, {})]
        folder = hub.pull(NAME, tell=said.append)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert len(server.asked_for("model.safetensors")) == 2


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_by_the_hub_itself_is_final(server, repo, said, status):
    server.faults.statuses["model.safetensors"] = [(status, {})]
    with pytest.raises(HubError, match=r"model\.safetensors: ."):
        hub.pull(NAME, tell=said.append)
    assert len(server.asked_for("model.safetensors")) == 1


@pytest.mark.parametrize(
    "range_", ["bytes 1000-{last}/{more}", "bytes 1000-{more}/*", "bytes 999-{last}/{size}", "none"]
)
def test_a_rest_that_is_not_the_files_is_refused(server, repo, said, range_):
    size = len(WEIGHTS)
    server.faults.cut_after["model.safetensors"] = [1000]
    server.faults.chunked_extra["model.safetensors"] = b""  # no length is announced beside it
    server.faults.content_range["model.safetensors"] = range_.format(last=size - 1, more=size + 9, size=size)
    with pytest.raises(HubError, match=r"asked for bytes 1000-|the server announces"):
        hub.pull(NAME, tell=said.append)


def test_a_rest_of_a_file_of_unknown_length_is_taken(server, repo, said):
    server.faults.cut_after["model.safetensors"] = [1000]
    server.faults.content_range["model.safetensors"] = f"bytes 1000-{len(WEIGHTS) - 1}/*"
    folder = hub.pull(NAME, tell=said.append)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


# Redirects


@dataclass
class Answer:
    status_code: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"[]"

    def iter_raw(self) -> Iterator[bytes]:
        yield self.body


class ScriptedClient:
    """Answers each address as it is told; one that it was not told redirects nowhere and says []."""

    def __init__(self, redirects: Mapping[str, str]):
        self.redirects = redirects
        self.asked: dict[str, Mapping[str, str]] = {}

    @contextmanager
    def stream(self, method: str, url: str, *, headers: Mapping[str, str], **options: object) -> Iterator[Answer]:
        assert options["follow_redirects"] is False
        self.asked[url] = headers
        target = self.redirects.get(url)
        yield Answer(200) if target is None else Answer(302, {"Location": target})


def followed(monkeypatch: pytest.MonkeyPatch, *hops: str) -> ScriptedClient:
    """Fetch the first address, which redirects to the second, and so on; with credentials."""
    client = ScriptedClient(dict(pairwise(hops)))
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: client)
    headers = {"Authorization": "Bearer secret", "X-Other": "1"}
    assert transfer.fetch_json(hops[0], headers, lambda text: None) == (200, [])
    return client


@pytest.mark.parametrize("start", ["https://hub.example/list", "http://hub.example/list"])
def test_a_redirect_to_https_is_followed(monkeypatch: pytest.MonkeyPatch, start: str):
    assert "https://storage.example/a" in followed(monkeypatch, start, "https://storage.example/a").asked


def test_a_redirect_from_http_to_http_is_followed(monkeypatch: pytest.MonkeyPatch):
    assert "http://b.example/" in followed(monkeypatch, "http://a.example/", "http://b.example/").asked


@pytest.mark.parametrize(
    "target",
    [
        "http://hub.example/list",
        "http://storage.example/a",
        "ftp://storage.example/a",
        "https://storage.example:0/a",
        "https://storage.example:x/a",
        "https://storage.example/a\x07",
    ],
)
def test_a_redirect_from_https_to_what_is_not_https_is_refused(monkeypatch: pytest.MonkeyPatch, target: str):
    with pytest.raises(HubError, match="not a safe place"):
        followed(monkeypatch, "https://hub.example/list", target)


def test_a_redirect_to_no_host_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(HubError, match="not a safe place"):
        followed(monkeypatch, "http://hub.example/list", "https:///a")


def test_a_chain_of_redirects_never_leaves_https_again(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(HubError, match="not a safe place"):
        followed(monkeypatch, "http://a.example/", "https://b.example/", "http://c.example/")


@pytest.mark.parametrize("target", ["https://hub.example/other", "https://hub.example:443/other"])
def test_credentials_go_to_another_address_of_their_own_host(monkeypatch: pytest.MonkeyPatch, target: str):
    client = followed(monkeypatch, "https://hub.example/list", target)
    assert client.asked[target]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("start", "target"),
    [
        ("https://hub.example/list", "https://storage.example/list"),
        ("https://hub.example/list", "https://hub.example:8443/list"),
        ("https://hub.example/list", "https://hub.example.evil.example/list"),
        ("http://hub.example/list", "https://hub.example/list"),
        ("http://hub.example:8000/list", "https://hub.example:8000/list"),
    ],
)
def test_credentials_go_to_no_other_origin(monkeypatch: pytest.MonkeyPatch, start: str, target: str):
    client = followed(monkeypatch, start, target)
    assert client.asked[target] == {"Accept-Encoding": "identity"}


def test_credentials_that_were_left_behind_do_not_come_back(monkeypatch: pytest.MonkeyPatch):
    hops = ("https://hub.example/a", "https://storage.example/b", "https://hub.example/c")
    client = followed(monkeypatch, *hops)
    assert "Authorization" not in client.asked[hops[2]]


def test_an_answer_that_is_no_small_list_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch):
    read = []

    class Endless(Answer):
        def iter_raw(self) -> Iterator[bytes]:
            while True:
                read.append(1)
                yield bytes(100)

    class Client:
        @contextmanager
        def stream(self, *arguments: object, **options: object) -> Iterator[Answer]:
            yield Endless(200)

    monkeypatch.setattr(huggingface_hub, "get_session", Client)
    monkeypatch.setattr(transfer, "MAX_JSON_BYTES", 1000)
    with pytest.raises(HubError, match="more than 0 MiB; that is no file list"):
        transfer.fetch_json("https://hub.example/list", {}, lambda text: None)
    assert len(read) == 11


def test_a_file_that_the_server_compressed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Client:
        @contextmanager
        def stream(self, *arguments: object, headers: Mapping[str, str], **options: object) -> Iterator[Answer]:
            assert headers["Accept-Encoding"] == "identity"
            yield Answer(200, {"Content-Encoding": "gzip"}, b"hello")

    monkeypatch.setattr(huggingface_hub, "get_session", Client)
    download = transfer.Download(RemoteFile("x", 5, sha256(b"hello")), "https://hub.example/x")
    with pytest.raises(HubError, match="the server compressed the file"):
        transfer.fetch(download, tmp_path / "x", Silent(), lambda text: None)
