"""Downloads from a hub that misbehaves, and what huggingface_hub makes of the result."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import threading
from pathlib import Path

import huggingface_hub
import pytest

from fake_hub import FakeHub, git_sha1, sha256
from minicpm import hub
from minicpm.errors import HubError

NAME = "openbmb/MiniCPM-2B-dpo-bf16"
WEIGHTS = random.Random(0).randbytes(3_000_001)
FILES = {
    "config.json": b'{"architectures": ["MiniCPMForCausalLM"]}',
    "tokenizer.json": b'{"model": {}}' * 40,
    "tokenizer.model": b"\x00pieces" * 99,
    "README.md": "# 面壁\n".encode(),
    "modeling_minicpm.py": b"raise SystemExit('never run')",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": WEIGHTS[::-1],
    "notes/extra.txt": b"deeper",
}
NEEDED = {"config.json", "tokenizer.json", "tokenizer.model", "README.md", "model.safetensors"}
SOURCES = ["huggingface", "modelscope"]


@pytest.fixture
def repo(server: FakeHub):
    server.add("OpenBMB/MiniCPM-2B-dpo-bf16", FILES)
    return server.add(NAME, FILES)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".minicpm.json"
    }


def leftovers(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("*") if path.name.endswith((".incomplete", ".tmp"))]


@pytest.mark.parametrize("source", SOURCES)
def test_a_pull_brings_what_a_model_needs_in_one_form_and_no_code(server, repo, tmp_path, said, source):
    folder = hub.pull(NAME, source=source, tell=said.append)
    assert contents(folder) == {path: FILES[path] for path in NEEDED}
    assert leftovers(tmp_path) == []
    assert server.fetched() == sum(len(FILES[path]) for path in NEEDED)


@pytest.mark.parametrize("source", SOURCES)
def test_pulling_again_fetches_nothing(server, repo, said, source):
    first = hub.pull(NAME, source=source, tell=said.append)
    before = server.fetched()
    assert hub.pull(NAME, source=source, tell=said.append) == first
    assert server.fetched() == before


@pytest.mark.parametrize("source", SOURCES)
def test_all_files_come_when_asked_for(server, repo, said, source):
    folder = hub.pull(NAME, source=source, everything=True, tell=said.append)
    assert contents(folder) == FILES


def test_bin_weights_come_where_there_are_no_safetensors(server, said):
    files = {
        "config.json": b"{}",
        "pytorch_model.bin.index.json": b'{"weight_map": {"a": "pytorch_model-1.bin"}}',
        "pytorch_model-1.bin": b"x" * 99,
        "training_args.bin": b"pickle",
        "optimizer.pt": b"no",
    }
    server.add("some/bin", files)
    assert set(contents(hub.pull("some/bin", tell=said.append))) == set(files) - {"training_args.bin", "optimizer.pt"}


def test_the_other_forms_index_is_left_out(server, said):
    server.add(
        "some/both",
        {
            "config.json": b"{}",
            "model.safetensors": b"s",
            "pytorch_model.bin.index.json": b"{}",
            "pytorch_model-1.bin": b"x",
            "consolidated.safetensors": b"c",
        },
    )
    assert set(contents(hub.pull("some/both", tell=said.append))) == {"config.json", "model.safetensors"}


def test_a_repository_without_weights_is_refused_by_name(server, said):
    server.add("some/empty", {"config.json": b"{}"})
    with pytest.raises(HubError, match="some/empty holds no weights"):
        hub.pull("some/empty", tell=said.append)


def test_several_gguf_files_are_the_users_choice(server, said):
    server.add("some/gguf", {"a-q4.gguf": b"a", "a-q8.gguf": b"b"})
    with pytest.raises(HubError, match=r"a-q4.gguf, a-q8.gguf.*--all"):
        hub.pull("some/gguf", tell=said.append)


# The library as oracle


def test_the_cache_equals_what_huggingface_hub_writes(server, repo, tmp_path, said):
    hub.pull(NAME, everything=True, tell=said.append)
    ours = tmp_path / "hf" / "hub"
    theirs = tmp_path / "theirs"
    huggingface_hub.snapshot_download(NAME, endpoint=server.url, cache_dir=theirs)

    def tree(root: Path) -> dict[str, object]:
        kept = [path for path in root.rglob("*") if not {".locks", "trees", "CACHEDIR.TAG"} & set(path.parts)]
        return {
            str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
            for path in kept
            if path.is_file()
        }

    assert tree(ours) == tree(theirs)


def test_huggingface_hub_finds_what_was_pulled(server, repo, tmp_path, said):
    folder = hub.pull(NAME, tell=said.append)
    cache = tmp_path / "hf" / "hub"
    found = huggingface_hub.snapshot_download(NAME, cache_dir=cache, local_files_only=True)
    assert Path(found) == folder
    file = huggingface_hub.try_to_load_from_cache(NAME, "model.safetensors", cache_dir=cache)
    assert Path(file).read_bytes() == WEIGHTS
    scanned = huggingface_hub.scan_cache_dir(cache)
    assert [found.repo_id for found in scanned.repos] == [NAME] and scanned.warnings == []


def test_what_huggingface_hub_downloaded_is_used_as_it_is(server, repo, tmp_path, said):
    theirs = huggingface_hub.snapshot_download(NAME, endpoint=server.url, cache_dir=tmp_path / "hf" / "hub")
    before = server.fetched()
    assert hub.resolve(NAME, offline=True, tell=said.append) == Path(theirs)
    assert hub.pull(NAME, tell=said.append) == Path(theirs)
    assert server.fetched() == before


def test_a_plain_folder_in_modelscopes_cache_is_checked_and_used(server, repo, tmp_path, said):
    folder = tmp_path / "ms" / "models" / "OpenBMB" / "MiniCPM-2B-dpo-bf16"
    folder.mkdir(parents=True)
    for path in NEEDED:
        (folder / path).write_bytes(FILES[path])
    (folder / "tokenizer.model").write_bytes(b"\x01" + FILES["tokenizer.model"][1:])
    assert hub.pull(NAME, source="modelscope", tell=said.append) == folder
    assert contents(folder) == {path: FILES[path] for path in NEEDED}
    assert server.fetched() == len(FILES["tokenizer.model"])


# Transfers that go wrong


@pytest.mark.parametrize("source", SOURCES)
def test_a_cut_connection_goes_on_where_it_stopped(server, repo, said, source):
    server.faults.cut_after["model.safetensors"] = [1_000_000, 500_000]
    folder = hub.pull(NAME, source=source, tell=said.append)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert server.fetched("model.safetensors") == len(WEIGHTS)
    assert [request.start for request in server.asked_for("model.safetensors")] == [0, 1_000_000, 1_500_000]


def test_a_connection_that_never_brings_a_byte_is_given_up_with_a_sentence(server, repo, said):
    server.faults.cut_after["model.safetensors"] = [1000] + [0] * 20
    with pytest.raises(HubError, match=r"model.safetensors: .*gave up after 6 tries. Run the same command to go on"):
        hub.pull(NAME, tell=said.append)
    server.faults.cut_after.clear()
    hub.pull(NAME, tell=said.append)
    assert server.asked_for("model.safetensors")[-1].start == 1000


@pytest.mark.parametrize("source", SOURCES)
def test_a_wrong_byte_is_found_and_only_that_file_fetched_again(server, repo, said, source):
    server.faults.wrong_byte["model.safetensors"] = 1
    folder = hub.pull(NAME, source=source, tell=said.append)
    assert contents(folder) == {path: FILES[path] for path in NEEDED}
    assert server.fetched() == sum(len(FILES[path]) for path in NEEDED) + len(WEIGHTS)


def test_a_wrong_byte_in_a_small_file_is_found_too(server, repo, said):
    server.faults.wrong_byte["config.json"] = 1
    folder = hub.pull(NAME, tell=said.append)
    assert (folder / "config.json").read_bytes() == FILES["config.json"]
    assert len(server.asked_for("config.json")) == 2


def test_bytes_that_stay_wrong_are_never_put_into_the_cache(server, repo, tmp_path, said):
    server.faults.wrong_byte["model.safetensors"] = 99
    with pytest.raises(HubError, match=f"model.safetensors: .*the hub lists {sha256(WEIGHTS)}, twice"):
        hub.pull(NAME, tell=said.append)
    assert hub.locate(NAME) is None
    blobs = tmp_path.glob("hf/hub/models--*/blobs/*")
    assert all(path.stat().st_size == 0 for path in blobs if path.name.startswith(sha256(WEIGHTS)))


def test_a_damaged_partial_costs_that_file_only(server, repo, tmp_path, said):
    server.faults.cut_after["model.safetensors"] = [2_000_000] + [0] * 20
    with pytest.raises(HubError):
        hub.pull(NAME, tell=said.append)
    (partial,) = tmp_path.glob("hf/hub/models--*/blobs/*.incomplete")
    partial.write_bytes(b"\xff" * 2_000_000)
    server.faults.cut_after.clear()
    folder = hub.pull(NAME, tell=said.append)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_partial_longer_than_the_file_is_started_over(server, repo, tmp_path, said):
    blobs = tmp_path / "hf/hub/models--openbmb--MiniCPM-2B-dpo-bf16/blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(WEIGHTS)}.minicpm.incomplete").write_bytes(WEIGHTS + b"more")
    folder = hub.pull(NAME, tell=said.append)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_complete_partial_is_only_verified(server, repo, tmp_path, said):
    blobs = tmp_path / "hf/hub/models--openbmb--MiniCPM-2B-dpo-bf16/blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256(WEIGHTS)}.minicpm.incomplete").write_bytes(WEIGHTS)
    folder = hub.pull(NAME, tell=said.append)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert server.asked_for("model.safetensors") == []


def test_a_server_that_ignores_ranges_costs_bytes_but_no_progress(server, repo, said):
    server.faults.ignore_range = True
    server.faults.cut_after["model.safetensors"] = [1_000_000, 2_500_000]
    folder = hub.pull(NAME, tell=said.append)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_server_that_refuses_the_range_is_asked_from_the_start(server, repo, said):
    server.faults.always_416 = True
    server.faults.cut_after["model.safetensors"] = [1_000_000]
    folder = hub.pull(NAME, tell=said.append)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("status", [429, 500, 502, 503])
@pytest.mark.parametrize("what", ["list", "model.safetensors"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_busy_hub_is_asked_again(server, repo, said, status, what, source):
    server.faults.statuses[what] = [(status, {"Retry-After": "0"}), (status, {})]
    folder = hub.pull(NAME, source=source, tell=said.append)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert sum(f"status {status}" in text for text in said) == 2


NOISE = "no\x1b[2J\x07\x9b31m\u202e 模型 " + "x" * 5000


@pytest.mark.parametrize("message", [NOISE, NOISE.encode().decode("latin-1")])
def test_what_a_hub_says_cannot_drive_the_terminal(server, repo, said, message):
    header = {"X-Error-Message": "".join(c for c in message if "\x80" <= c < "\u0100" or " " <= c <= "~")}
    server.faults.statuses["list"] = [(400, header)]
    with pytest.raises(HubError, match="with status 400 no") as refused:
        hub.pull(NAME, tell=said.append)
    server.faults.listing = {"Success": False, "Message": message}
    with pytest.raises(HubError, match="with status 200 no") as complaint:
        hub.pull(NAME, source="modelscope", tell=said.append)
    for error in (refused, complaint):
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 400


def test_what_a_hub_lists_cannot_drive_the_terminal(server, repo, said):
    server.faults.extra_entries = [{"type": "file", "path": "a\x1b[2J" + "x" * 5000, "size": 1, "oid": "0" * 40}]
    with pytest.raises(HubError, match="lists a file named") as error:
        hub.pull(NAME, tell=said.append)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


def test_a_hub_that_asks_for_an_hour_is_not_waited_for(server, repo, said):
    server.faults.statuses["model.safetensors"] = [(429, {"Retry-After": "3600"})]
    with pytest.raises(HubError, match="come back in 3600 s"):
        hub.pull(NAME, tell=said.append)


@pytest.mark.parametrize("announced", [len(WEIGHTS) - 1, len(WEIGHTS) + 1])
def test_an_announced_length_other_than_the_listed_one_is_refused(server, repo, said, announced):
    server.faults.announce["model.safetensors"] = announced
    with pytest.raises(HubError, match=f"lists {len(WEIGHTS)} bytes, but the server announces {announced}"):
        hub.pull(NAME, tell=said.append)


def test_more_bytes_than_listed_are_refused(server, repo, said):
    server.faults.chunked_extra["model.safetensors"] = b"!" * 100_000
    with pytest.raises(HubError, match=f"more than the {len(WEIGHTS)} bytes"):
        hub.pull(NAME, tell=said.append)


def test_fewer_bytes_without_a_length_are_noticed(server, repo, said):
    server.faults.chunked_extra["model.safetensors"] = b""
    server.faults.cut_after["model.safetensors"] = [1_000_000]
    folder = hub.pull(NAME, tell=said.append)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_an_answer_with_another_range_is_refused(server, repo, said):
    server.faults.cut_after["model.safetensors"] = [1_000_000]
    server.faults.content_range["model.safetensors"] = f"bytes 0-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"
    with pytest.raises(HubError, match="asked for bytes 1000000-"):
        hub.pull(NAME, tell=said.append)


@pytest.mark.parametrize("through_storage", [False, True])
def test_a_file_that_changed_since_it_was_listed_is_noticed_before_its_bytes(server, repo, said, through_storage):
    server.faults.redirect_to = server.url if through_storage else None
    server.faults.etag["model.safetensors"] = "0" * 64
    with pytest.raises(HubError, match="changed on the hub"):
        hub.pull(NAME, tell=said.append)


# Credentials


def test_the_token_goes_to_the_hub_and_not_to_its_storage(server, repo, said, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.faults.needs_token = "hf_secret"
    with FakeHub() as storage:
        storage.add(NAME, FILES)
        server.faults.redirect_to = storage.url
        server.faults.cut_after["model.safetensors"] = [1_000_000]
        storage.faults.cut_after["model.safetensors"] = [1_000_000]
        folder = hub.pull(NAME, tell=said.append)
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS
        assert storage.fetched() == sum(len(FILES[path]) for path in NEEDED)
        assert all("authorization" not in request.headers for request in storage.requests)
    assert all(request.headers["authorization"] == "Bearer hf_secret" for request in server.requests)
    assert not any("hf_secret" in text for text in said)


def test_modelscope_never_sees_the_hugging_face_token(server, repo, said, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.pull(NAME, source="modelscope", tell=said.append)
    assert not any("hf_secret" in str(request.headers) for request in server.requests)


def test_a_gated_model_without_a_token_says_where_to_accept_and_how_to_log_in(server, repo, said):
    server.faults.needs_token = "hf_secret"
    with pytest.raises(HubError, match=rf"is gated: accept its terms at {server.url}/{NAME}, then set HF_TOKEN"):
        hub.pull(NAME, tell=said.append)


def test_a_gated_model_says_that_the_token_has_no_access(server, repo, said, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    server.faults.needs_token = "hf_secret"
    with pytest.raises(HubError, match="your token has no access") as caught:
        hub.pull(NAME, tell=said.append)
    assert "hf_other" not in str(caught.value)


def test_a_redirect_to_a_local_file_is_not_followed(server, repo, said):
    server.faults.redirect_to = "file:///etc"
    with pytest.raises(HubError, match="not a safe place"):
        hub.pull(NAME, tell=said.append)


def test_circling_redirects_end(server, repo, said):
    server.faults.statuses["config.json"] = [(302, {"Location": f"{server.url}/{NAME}/resolve/main/config.json"})] * 99
    with pytest.raises(HubError, match="redirects more than 10 times"):
        hub.pull(NAME, tell=said.append)


# Hostile listings


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "a/../../x",
        "/etc/x",
        "a//b",
        ".",
        "a\\..\\b",
        "C:x",
        "a\nb.json",
        "",
        "x" * 300,
        "config.json/x",
        ".msc",
        ".minicpm.json",
    ],
)
def test_a_listed_path_that_leaves_the_folder_is_refused_before_any_byte(server, repo, tmp_path, said, path):
    for source in SOURCES:
        server.faults.extra_entries = [{"type": "file", "path": path, "size": 1, "oid": git_sha1(b"x")}]
        server.faults.extra_files = [{"Path": path, "Type": "blob", "Size": 1, "Sha256": sha256(b"x")}]
        with pytest.raises(HubError, match="nothing was fetched"):
            hub.pull(NAME, source=source, everything=True, tell=said.append)
    assert server.fetched() == 0


@pytest.mark.parametrize(
    "entry",
    [
        {"size": -1},
        {"size": 10**18},
        {"size": "12"},
        {"oid": "../../evil"},
        {"oid": "A" * 40},
        {"lfs": {"oid": "../evil", "size": 3, "pointerSize": 9}},
        {"path": 7},
        {"path": "config.json"},
    ],
)
def test_a_listed_size_hash_or_name_of_the_wrong_kind_is_refused(server, repo, said, entry):
    server.faults.extra_entries = [{"type": "file", "path": "x.json", "size": 1, "oid": git_sha1(b"x"), **entry}]
    with pytest.raises(HubError):
        hub.pull(NAME, tell=said.append)
    assert server.fetched() == 0


@pytest.mark.parametrize("listing", [{}, [1], [{"type": "file"}], {"Success": True, "Data": {"Files": 3}}, "no"])
@pytest.mark.parametrize("source", SOURCES)
def test_an_answer_that_is_no_listing_is_one_sentence(server, repo, said, source, listing):
    server.faults.listing = listing
    with pytest.raises(HubError):
        hub.pull(NAME, source=source, tell=said.append)


@pytest.mark.parametrize("source", SOURCES)
def test_a_missing_model_is_named_with_its_neighbours(server, said, source):
    with pytest.raises(HubError, match=r"there is no model 'openbmb/MiniCPM-2B-dop-bf16'.*MiniCPM-2B-dpo-bf16"):
        hub.pull("openbmb/MiniCPM-2B-dop-bf16", source=source, tell=said.append)


def test_a_missing_revision_is_named(server, repo, said):
    with pytest.raises(HubError, match="has no revision 'v9'"):
        hub.pull(f"{NAME}@v9", tell=said.append)


def test_a_hub_that_is_not_there_is_one_sentence(server, repo, said, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="gave up after 6 tries"):
        hub.pull(NAME, tell=said.append)


def test_an_endpoint_that_is_no_address_is_a_plain_mistake(server, repo, said, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "hub.example")
    with pytest.raises(ValueError, match="HF_ENDPOINT is "):
        hub.pull(NAME, tell=said.append)


# The disk


def test_a_model_that_does_not_fit_is_refused_with_numbers_before_its_first_byte(server, repo, said, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12 - 10**6, 10**6))
    with pytest.raises(HubError, match=r"needs 0.00 GB more .* 0.00 GB are free; make room"):
        hub.pull(NAME, tell=said.append)
    assert server.fetched() == 0


def test_an_update_that_is_interrupted_leaves_the_older_model_whole(server, repo, said):
    for source in SOURCES:
        hub.pull(NAME, source=source, tell=said.append)
    newer = {**FILES, "config.json": b"{}", "model.safetensors": WEIGHTS[::-1]}
    server.add(NAME, newer)
    server.add("OpenBMB/MiniCPM-2B-dpo-bf16", newer)
    for source in SOURCES:
        server.faults.cut_after["model.safetensors"] = [1_000_000] + [0] * 20
        with pytest.raises(HubError):
            hub.pull(NAME, source=source, tell=said.append)
        folder = hub.resolve(NAME, source=source, offline=True, tell=said.append)
        assert contents(folder) == {path: FILES[path] for path in NEEDED}
        server.faults.cut_after.clear()
        folder = hub.pull(NAME, source=source, tell=said.append)
        assert contents(folder) == {path: newer[path] for path in NEEDED}


@pytest.mark.parametrize("source", SOURCES)
def test_verify_finds_rotten_bytes_in_the_cache_and_fetches_that_file_only(server, repo, said, source):
    folder = hub.pull(NAME, source=source, tell=said.append)
    status = (folder / "model.safetensors").stat()
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(bytes([WEIGHTS[0] ^ 1]))
    os.utime(folder / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns))
    before = server.fetched()
    hub.pull(NAME, source=source, verify=True, tell=said.append)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert server.fetched() - before == len(WEIGHTS)


def test_equal_files_under_two_names_come_once(server, said):
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS, "model-copy.safetensors": WEIGHTS}
    for name, source in (("some/twins", "huggingface"), ("some/twins", "modelscope")):
        server.add(name, files)
        before = server.fetched()
        assert contents(hub.pull(name, source=source, tell=said.append)) == files
        assert server.fetched() - before == len(WEIGHTS) + 2


def test_two_pulls_at_once_fetch_every_byte_once(server, repo, tmp_path):
    server.faults.pause_s = 0.003
    told: list[str] = []
    folders: list[Path] = []
    pulls = [threading.Thread(target=lambda: folders.append(hub.pull(NAME, tell=told.append))) for _ in range(2)]
    for pull in pulls:
        pull.start()
    for pull in pulls:
        pull.join()
    assert folders[0] == folders[1]
    assert contents(folders[0]) == {path: FILES[path] for path in NEEDED}
    assert server.fetched() == sum(len(FILES[path]) for path in NEEDED)


def test_progress_counts_every_byte_once_and_takes_wrong_ones_back(server, repo, said):
    class Counter:
        total = done = ended = 0

        def begin(self, label: str, total_bytes: int, done_bytes: int = 0) -> None:
            self.total, self.done = total_bytes, done_bytes

        def advance(self, nbytes: int) -> None:
            self.done += nbytes

        def end(self) -> None:
            self.ended += 1

    server.faults.wrong_byte["model.safetensors"] = 1
    server.faults.cut_after["model.safetensors"] = [1_000_000]
    first = Counter()
    hub.pull(NAME, progress=first, tell=said.append)
    assert first.done == first.total == sum(len(FILES[path]) for path in NEEDED)
    again = Counter()
    hub.pull(NAME, progress=again, tell=said.append)
    assert again.done == again.total and again.ended == 1


def test_the_git_hash_of_small_files_is_the_one_that_git_gives():
    from minicpm.hub.remote import RemoteFile

    hasher = RemoteFile("x", 5, "0" * 40).hasher()
    hasher.update(b"hello")
    assert hasher.hexdigest() == "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"  # git hash-object
    assert hashlib.sha256(b"").hexdigest() == RemoteFile("x", 0, "0" * 64).hasher().hexdigest()
