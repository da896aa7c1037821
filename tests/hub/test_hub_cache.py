"""Models on this machine: they are found, listed, marked as used, and removed; and the notice before the first use."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fake_hub import FakeHub
from minicpm import hub
from minicpm.errors import HubError
from minicpm.hub import cache

NAME = "openbmb/MiniCPM-2B-dpo-bf16"
FILES = {
    "config.json": b'{"architectures": ["MiniCPMForCausalLM"]}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"w" * 5000,
}
SOURCES = ["huggingface", "modelscope"]


@pytest.fixture
def pulled(server: FakeHub, said: list[str]) -> FakeHub:
    """The model, at home from both hubs."""
    server.add(NAME, FILES)
    server.add("OpenBMB/MiniCPM-2B-dpo-bf16", FILES)
    for source in SOURCES:
        hub.pull(NAME, source=source, tell=said.append)
    return server


# Finding


def test_a_complete_model_is_used_without_asking_the_hub(pulled: FakeHub, said: list[str]):
    before = len(pulled.requests)
    for source in SOURCES:
        assert (hub.resolve(NAME, source=source, tell=said.append) / "config.json").exists()
    assert len(pulled.requests) == before


def test_a_missing_model_is_downloaded_by_resolve(server: FakeHub, said: list[str]):
    server.add(NAME, FILES)
    folder = hub.resolve("minicpm-2b-dpo", tell=said.append)
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_an_incomplete_model_is_completed_by_resolve(pulled: FakeHub, said: list[str]):
    folder = hub.resolve(NAME, tell=said.append)
    (folder / "model.safetensors").resolve().unlink()
    assert hub.resolve("hf:" + NAME, tell=said.append) == folder
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_the_other_hubs_copy_serves_where_the_name_leaves_it_open(server: FakeHub, said: list[str]):
    server.add("OpenBMB/miniCPM-bf16", FILES)
    folder = hub.pull("minicpm-2b-sft", source="modelscope", tell=said.append)
    assert hub.resolve("openbmb/MiniCPM-2B-sft-bf16", offline=True, tell=said.append) == folder
    with pytest.raises(HubError):
        hub.resolve("hf:openbmb/MiniCPM-2B-sft-bf16", offline=True, tell=said.append)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_mode_of_the_environment_is_obeyed(server: FakeHub, said: list[str], monkeypatch, variable: str):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(HubError, match="is not on this machine, and nothing is downloaded because HF_HUB_OFFLINE"):
        hub.resolve(NAME, tell=said.append)
    assert server.requests == []


def test_offline_says_what_an_incomplete_model_lacks(pulled: FakeHub, said: list[str]):
    (hub.resolve(NAME, tell=said.append) / "model.safetensors").resolve().unlink()
    with pytest.raises(HubError, match=r"incomplete on this machine \(model.safetensors .*--offline was given"):
        hub.pull("hf:" + NAME, offline=True, tell=said.append)


def test_a_revision_is_kept_beside_the_main_one(pulled: FakeHub, said: list[str]):
    old = pulled.repos[NAME].commit
    pulled.add(NAME, {**FILES, "config.json": b"{}"})
    newer = hub.pull(NAME, tell=said.append)
    assert newer.name != old
    assert hub.resolve(f"{NAME}@{old}", offline=True, tell=said.append).name == old
    assert hub.resolve("hf:" + NAME, offline=True, tell=said.append) == newer


@pytest.mark.parametrize(
    "files, missing",
    [
        ({}, "config.json"),
        ({"config.json": "{}"}, "the weights"),
        ({"config.json": "{}", "model.safetensors": ""}, None),
        ({"config.json": "{}", "pytorch_model.bin": ""}, None),
        ({"x.gguf": ""}, None),
        (
            {"config.json": "{}", "model.safetensors.index.json": '{"weight_map": {"a": "1.safetensors"}}'},
            "1.safetensors",
        ),
        (
            {
                "config.json": "{}",
                "model.safetensors.index.json": '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}',
                "1.safetensors": "",
            },
            "2.safetensors",
        ),
        (
            {
                "config.json": "{}",
                "pytorch_model.bin.index.json": '{"weight_map": {"a": "1.bin"}}',
                "1.bin": "",
            },
            None,
        ),
    ],
)
def test_a_folder_is_complete_when_every_shard_of_an_index_is_there(tmp_path: Path, files, missing):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cache.missing_parts(tmp_path) == missing


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"XDG_CACHE_HOME": "/x/cache"},
        {"HF_HOME": "~/hf"},
        {"HF_HOME": "/h", "HF_HUB_CACHE": "$HOME/c"},
        {"HUGGINGFACE_HUB_CACHE": "/old"},
    ],
)
def test_the_cache_is_where_huggingface_hub_has_it(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]):
    names = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert str(cache.huggingface_root()) == theirs


def test_a_preferred_hub_does_not_fetch_again_what_the_other_brought(pulled: FakeHub, said: list[str], monkeypatch):
    hub.remove(NAME, source="modelscope")
    monkeypatch.setenv("MINICPM_HUB", "modelscope")
    before = pulled.fetched()
    hub.resolve("minicpm-2b-dpo", tell=said.append)
    assert pulled.fetched() == before


# Listing


def test_a_list_names_each_model_with_its_hub_size_and_state(pulled: FakeHub):
    size = sum(map(len, FILES.values()))
    found = {(m.name, m.source, m.revision, m.is_complete) for m in hub.list_models()}
    assert found == {
        (NAME, "huggingface", "main", True),
        ("OpenBMB/MiniCPM-2B-dpo-bf16", "modelscope", "master", True),
    }
    sizes = {m.source: m.nbytes for m in hub.list_models()}
    assert sizes == {"huggingface": size, "modelscope": size}
    assert all(m.last_used is not None for m in hub.list_models())


@pytest.mark.parametrize("source", SOURCES)
def test_an_interrupted_download_is_listed_as_incomplete_and_can_be_removed(server: FakeHub, said, source: str):
    for name in (NAME, "OpenBMB/MiniCPM-2B-dpo-bf16"):
        server.add(name, FILES)
    server.faults.cut_after["model.safetensors"] = [3000] + [0] * 20
    with pytest.raises(HubError):
        hub.pull(NAME, source=source, tell=said.append)
    (model,) = hub.list_models()
    assert (model.is_complete, model.source) == (False, source)
    assert model.nbytes >= 3000
    assert hub.remove("minicpm-2b-dpo") >= 3000
    assert hub.list_models() == []


def test_other_families_in_the_shared_cache_are_left_out(pulled: FakeHub, tmp_path: Path):
    for name, config in {
        "models--bert--base": '{"model_type": "bert"}',
        "models--me--tuned": '{"model_type": "minicpm"}',
    }.items():
        folder = tmp_path / "hf/hub" / name / "snapshots" / ("a" * 40)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(config)
    assert {model.name for model in hub.list_models()} == {NAME, "OpenBMB/MiniCPM-2B-dpo-bf16", "me/tuned"}
    assert "bert/base" in {model.name for model in hub.list_models(everything=True)}


def test_a_model_of_any_name_is_listed_once_it_was_pulled(server: FakeHub, said: list[str]):
    server.add("me/granite.form-x", {**FILES, "config.json": b'{"model_type": "granite"}'})
    hub.pull("ms:me/granite.form-x", tell=said.append)
    hub.pull("me/granite.form-x", tell=said.append)
    assert {(model.name, model.source) for model in hub.list_models()} == {
        ("me/granite.form-x", "huggingface"),
        ("me/granite.form-x", "modelscope"),
    }


def test_rubbish_in_the_caches_does_not_stop_the_list(pulled: FakeHub, tmp_path: Path):
    root = tmp_path / "hf/hub"
    (root / "models--").mkdir()
    (root / "models--openbmb--x").write_text("a file")
    (root / "models--openbmb--y" / "refs").mkdir(parents=True)
    (root / "models--openbmb--y" / "refs" / "main").write_bytes(b"\xff\xfe")
    folder = root / "models--openbmb--z/snapshots/abc"
    folder.mkdir(parents=True)
    (folder / "config.json").symlink_to("../../nowhere")
    (tmp_path / "ms/models/OpenBMB/file").write_text("a file")
    states = {model.name: model.is_complete for model in hub.list_models()}
    assert states[NAME] is True
    assert states["openbmb/z"] is False


def test_nothing_is_listed_where_there_are_no_caches(server: FakeHub):
    assert hub.list_models() == []


def test_listing_imports_no_hub_library():
    code = (
        "import sys; from minicpm import hub; hub.list_models(); "
        "print(sorted({'huggingface_hub', 'torch', 'transformers', 'httpx', 'httpx2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Removing


@pytest.mark.parametrize("source", SOURCES)
def test_removing_frees_the_bytes_it_says_and_nothing_else(pulled: FakeHub, source: str):
    freed = hub.remove(NAME, source=source)
    assert freed >= sum(map(len, FILES.values()))
    assert [model.source for model in hub.list_models()] == [other for other in SOURCES if other != source]


def test_removing_one_revision_keeps_the_files_that_another_uses(pulled: FakeHub, said: list[str]):
    old = pulled.repos[NAME].commit
    pulled.add(NAME, {**FILES, "config.json": b'{"model_type": "minicpm"}'})
    newer = hub.pull(NAME, tell=said.append)
    assert hub.remove(f"{NAME}@{old[:12]}") == len(FILES["config.json"])
    assert (newer / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert hub.remove(f"hf:{NAME}@main") > 5000
    assert hub.locate("hf:" + NAME) is None


def test_a_model_that_is_not_here_cannot_be_removed(server: FakeHub):
    with pytest.raises(HubError, match="is not on this machine; 'minicpm list' shows what is"):
        hub.remove(NAME)
    with pytest.raises(HubError, match="is not on this machine"):
        hub.remove(f"ms:{NAME}")


@pytest.mark.parametrize("name", ["/tmp/x", "../../x/y", "a/../b", "org/name@../../x", "~/x", "."])
def test_removal_takes_no_paths(pulled: FakeHub, name: str):
    with pytest.raises(HubError):
        hub.remove(name)
    assert len(hub.list_models()) == 2


def test_a_cache_folder_that_links_elsewhere_is_left_alone(pulled: FakeHub, tmp_path: Path):
    folder = tmp_path / "hf/hub/models--openbmb--MiniCPM-2B-dpo-bf16"
    precious = folder.rename(tmp_path / "precious")
    folder.symlink_to(precious)
    with pytest.raises(HubError, match="links out of the cache"):
        hub.remove(NAME, source="huggingface")
    assert (precious / "refs" / "main").exists()


def test_a_model_that_is_being_fetched_is_not_removed(server: FakeHub, said: list[str]):
    server.add(NAME, FILES)
    begun, go_on = threading.Event(), threading.Event()

    def hold(request: object) -> None:
        begun.set()
        go_on.wait(10)

    server.on_block = hold
    pull = threading.Thread(target=lambda: hub.pull(NAME, tell=said.append))
    pull.start()
    try:
        assert begun.wait(10)
        with pytest.raises(HubError, match="is being fetched by another process"):
            hub.remove(NAME)
    finally:
        go_on.set()
        pull.join()
    assert hub.locate(NAME) is not None


# The notice


def test_the_licence_and_the_statement_are_shown_once_for_each_model(server: FakeHub, said: list[str]):
    for name in (NAME, "openbmb/MiniCPM-V"):
        server.add(name, FILES)
    hub.pull(NAME, tell=said.append)
    (text,) = said
    for words in (
        "General Model License",
        "academic research",
        "cpm@modelbest.cn",
        "MiniCPM Model License",
        "checks it",
    ):
        assert words in text
    hub.pull(NAME, tell=said.append)
    hub.resolve(NAME, tell=said.append)
    assert len(said) == 1
    hub.pull("minicpm-v", tell=said.append)
    assert len(said) == 2 and "openbmb/MiniCPM-V " in said[1]


def test_the_notice_comes_before_the_use_of_what_another_tool_downloaded(pulled: FakeHub, said, monkeypatch, tmp_path):
    said.clear()
    monkeypatch.setenv("MINICPM_HOME", str(tmp_path / "another"))
    hub.resolve(NAME, offline=True, tell=said.append)
    assert len(said) == 1


def test_the_notice_goes_to_stderr_by_itself(server: FakeHub, capsys: pytest.CaptureFixture[str]):
    server.add(NAME, FILES)
    hub.resolve(NAME)
    captured = capsys.readouterr()
    assert captured.out == "" and "General Model License" in captured.err


def test_other_peoples_models_come_without_the_notice(server: FakeHub, said: list[str]):
    server.add("me/other", FILES)
    hub.pull("me/other", tell=said.append)
    assert said == []


def test_a_home_that_is_a_file_only_costs_the_note(server: FakeHub, said, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINICPM_HOME", str(tmp_path / "file"))
    server.add(NAME, FILES)
    hub.pull(NAME, tell=said.append)
    assert hub.locate(NAME) is not None
    assert json.loads((hub.resolve(NAME, tell=said.append) / "config.json").read_text())
