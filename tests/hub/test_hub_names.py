"""What a name means, and what is said about one that means nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from minicpm import hub
from minicpm.errors import HubError, MiniCPMError, ModelError
from minicpm.hub import KNOWN_MODELS, Reference, parse_name
from minicpm.hub.names import is_name


@pytest.fixture(autouse=True)
def no_preference(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINICPM_HUB", "HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


# The download table of the release's README: Hugging Face, ModelScope, WiseModel.
RELEASE = [
    ("openbmb/MiniCPM-2B-sft-bf16", "OpenBMB/miniCPM-bf16", "OpenBMB/miniCPM-bf16"),
    ("openbmb/MiniCPM-2B-sft-fp32", "OpenBMB/MiniCPM-2B-sft-fp32", "OpenBMB/miniCPM-dpo-fp32"),
    ("openbmb/MiniCPM-2B-dpo-bf16", "OpenBMB/MiniCPM-2B-dpo-bf16", "OpenBMB/MiniCPM-2B-dpo-bf16"),
    ("openbmb/MiniCPM-2B-dpo-fp16", "OpenBMB/MiniCPM-2B-dpo-fp16", "OpenBMB/MiniCPM-2B-dpo-fp16"),
    ("openbmb/MiniCPM-2B-dpo-fp32", "OpenBMB/MiniCPM-2B-dpo-fp32", "OpenBMB/miniCPM-dpo-fp32"),
    ("openbmb/MiniCPM-V", "OpenBMB/MiniCPM-V", "OpenBMB/MiniCPM-V"),
    ("openbmb/OmniLMM-12B", "OpenBMB/OmniLMM-12B", "OpenBMB/OmniLMM-12B"),
]


@pytest.mark.parametrize("huggingface, modelscope, wisemodel", RELEASE)
def test_every_download_of_the_release_has_an_alias_on_each_hub(huggingface: str, modelscope: str, wisemodel: str):
    alias = huggingface.partition("/")[2].lower()
    assert parse_name(alias) == Reference("huggingface", huggingface)
    assert parse_name(alias, source="modelscope") == Reference("modelscope", modelscope)
    assert parse_name(f"https://modelscope.cn/models/{modelscope}/summary").repo_id == modelscope
    assert parse_name(f"https://huggingface.co/{huggingface}").repo_id == huggingface
    with pytest.raises(HubError, match=f"{re.escape(wisemodel)}.git.*minicpm pull .*minicpm|omnilmm"):
        parse_name(f"https://www.wisemodel.cn/models/{wisemodel}")


@pytest.mark.parametrize(
    "address, words",
    [
        ("https://replicate.com/tuantuanzhang/minicpm", "minicpm pull minicpm-2b-dpo"),
        ("https://luca.cn/", "CPM-C"),
        ("https://github.com/OpenBMB/MiniCPM", "the release's code, not its weights"),
    ],
)
def test_the_releases_links_that_are_no_downloads_are_answered(address: str, words: str):
    with pytest.raises(HubError, match=re.escape(words)):
        parse_name(address)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_the_releases_int4_models_are_known_by_every_name(stage: str):
    for name in (f"MiniCPM-2B-{stage.upper()}-INT4", f"MiniCPM-2B-{stage}-Int4", f"openbmb/MiniCPM-2B-{stage}-int4"):
        known = parse_name(name).known
        assert known is not None and f"minicpm quantize minicpm-2b-{stage}" in str(known.unsupported)


def test_wisemodels_one_name_for_two_models_is_explained():
    with pytest.raises(HubError, match="one name for minicpm-2b-sft-fp32 and minicpm-2b-dpo-fp32"):
        parse_name("https://wisemodel.cn/models/OpenBMB/miniCPM-dpo-fp32")


def test_aliases_are_unique_and_lower_case():
    aliases = [alias for model in KNOWN_MODELS for alias in model.aliases]
    assert len(aliases) == len(set(aliases))
    assert all(alias == alias.lower() and "/" not in alias for alias in aliases)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("minicpm-2b-dpo", Reference("huggingface", "openbmb/MiniCPM-2B-dpo-bf16")),
        ("MiniCPM-1B", Reference("huggingface", "openbmb/MiniCPM-1B-sft-bf16")),
        ("minicpm-2b-128k@v2", Reference("huggingface", "openbmb/MiniCPM-2B-128k", "v2")),
        ("OPENBMB/minicpm-2b-DPO-bf16/", Reference("huggingface", "openbmb/MiniCPM-2B-dpo-bf16")),
        ("OpenBMB/miniCPM-bf16", Reference("modelscope", "OpenBMB/miniCPM-bf16")),
        ("ms:minicpm-2b-sft", Reference("modelscope", "OpenBMB/miniCPM-bf16")),
        ("modelscope:some/thing@v1", Reference("modelscope", "some/thing", "v1")),
        ("hf:some/thing", Reference("huggingface", "some/thing")),
        ("some/thing@refs/pr/7", Reference("huggingface", "some/thing", "refs/pr/7")),
        ("https://hf.co/some/thing/tree/v1", Reference("huggingface", "some/thing", "v1")),
        ("https://www.modelscope.cn/models/some/thing/files", Reference("modelscope", "some/thing")),
        ("https://www.modelscope.cn/some/thing.git", Reference("modelscope", "some/thing")),
    ],
)
def test_a_name_is_read_in_each_of_its_forms(name: str, expected: Reference):
    assert parse_name(name) == expected


def test_the_environment_chooses_the_hub_where_the_name_does_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINICPM_HUB", "modelscope")
    assert parse_name("minicpm-2b-sft") == Reference("modelscope", "OpenBMB/miniCPM-bf16")
    assert parse_name("hf:minicpm-2b-sft").source == "huggingface"
    assert parse_name("some/thing", source="huggingface").source == "huggingface"
    monkeypatch.setenv("MINICPM_HUB", "gitee")
    with pytest.raises(ValueError, match="MINICPM_HUB is 'gitee'"):
        parse_name("minicpm-2b-sft")


def test_a_model_that_one_hub_lacks_comes_from_the_other_unless_that_one_was_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINICPM_HUB", "modelscope")
    assert parse_name("minicpm-2b-sft-bf16-llama-format").source == "huggingface"
    with pytest.raises(HubError, match="not known to be on ModelScope; take it from Hugging Face"):
        parse_name("ms:minicpm-2b-sft-bf16-llama-format")


def test_a_mirror_named_by_the_environment_is_a_known_address(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://hf-mirror.example")
    assert parse_name("https://hf-mirror.example/some/thing") == Reference("huggingface", "some/thing")


def test_the_documents_show_the_same_table():
    text = (Path(__file__).parents[2] / "docs" / "hub.md").read_text(encoding="utf-8")
    for model in KNOWN_MODELS:
        (row,) = [line for line in text.splitlines() if f"| `{model.huggingface}` |" in line]
        assert row.startswith(f"| `{model.aliases[0]}`")
        shown = [name for name in re.findall(r"`([^`]+)`", row) if "/" in name]
        assert shown == [name for name in (model.huggingface, model.modelscope, model.wisemodel) if name]


@pytest.mark.parametrize(
    "typo, meant",
    [
        ("minicpm-2b-dop", "minicpm-2b-dpo"),
        ("minicpm2b", "minicpm-2b"),
        ("omnilm-12b", "omnilmm-12b"),
        ("minicpm-2b-128", "minicpm-2b-128k"),
    ],
)
def test_a_typo_is_answered_with_what_was_meant(typo: str, meant: str):
    with pytest.raises(HubError, match=rf"unknown model '{typo}'; did you mean .*{meant}\b"):
        parse_name(typo)


def test_an_unknown_short_name_is_answered_with_the_known_ones():
    with pytest.raises(HubError, match=r"org/name, a folder, or one of: minicpm-nano, minicpm-2b-sft, "):
        parse_name("gpt-2")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        "a/b/c",
        "../x/y",
        "/etc/passwd",
        "org/../x",
        "org/a--b",
        "org/.hidden",
        "org/na me",
        "org/name@../x",
        "org/name@/x",
        "org/name@a//b",
        "org/name@-x",
        "xx:org/name",
        "https://example.org/org/name",
        "ftp://huggingface.co/org/name",
        "https://huggingface.co/org",
        "org/" + "x" * 200,
        "org/näme",
    ],
)
def test_what_is_no_name_is_refused_with_a_sentence(name: str):
    with pytest.raises(HubError):
        parse_name(name)


def test_a_name_and_an_option_that_disagree_are_a_mistake():
    with pytest.raises(ValueError, match="names huggingface, but the source asked for is modelscope"):
        parse_name("hf:some/thing", source="modelscope")
    with pytest.raises(ValueError, match="names revision v1, but the revision asked for is v2"):
        parse_name("some/thing@v1", revision="v2")
    with pytest.raises(ValueError, match="unknown source 'gitee'"):
        parse_name("some/thing", source="gitee")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["./x", "/x", "~/x", "a/b/c", "..", "a\\b"])
def test_paths_are_not_taken_for_names(text: str):
    assert not is_name(text)


# resolve, before any hub is involved


def test_an_existing_folder_or_file_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "minicpm-2b").mkdir()
    assert hub.resolve("minicpm-2b") == Path("minicpm-2b")
    (tmp_path / "model.gguf").touch()
    assert hub.resolve(tmp_path / "model.gguf") == tmp_path / "model.gguf"


@pytest.mark.parametrize("path", [Path("minicpm-2b-dpo"), "./missing", "/no/such/folder", "a/b/c"])
def test_a_path_that_does_not_exist_is_named(path: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=re.escape(f"{path} does not exist")):
        hub.resolve(path)


def test_every_refusal_is_one_of_the_packages_own_errors():
    assert issubclass(HubError, MiniCPMError) and issubclass(ModelError, MiniCPMError)
