"""`minicpm verify`: recognises published content by its hash, reports the engine's scores, and claims nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broken_models import as_floats
from minicpm.engine.llm import LLM
from minicpm.eval.passages import passages
from minicpm.eval.published import FILES_SHA256, PERPLEXITIES, PROMPT_IDS, QUESTION
from minicpm.hub import embedded
from minicpm.quant.quality import log_softmax
from minicpm.tokenizer import Tokenizer


def report(outcome: Any) -> dict[str, Any]:
    assert outcome.code == 0, outcome.err
    return dict(json.loads(outcome.out))


def test_a_report_of_nano_has_its_hashes_its_answer_and_its_scores(minicpm):
    found = report(minicpm("verify", "--json"))
    for file in found["files"]:
        content = (embedded.folder() / file["name"]).read_bytes()
        assert (file["nbytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert file["published_as"] is None
    assert found["example"]["answer"] == LLM().chat(QUESTION, temperature=0, repetition_penalty=1).text
    assert found["example"]["is_expected"]
    assert not found["example"]["has_published_ids"]
    assert found["distance"] is None and found["windows"] is None and found["published_perplexities"] == []
    first, total = found["passages"][0], found["passages"][-1]
    llm, text = LLM(), passages()[0].text
    ids = llm.tokenizer.encode(text)
    nats = -log_softmax(llm.logits(ids))[np.arange(len(ids) - 1), ids[1:]].sum()
    assert first["nats"] == pytest.approx(nats, rel=1e-6)
    assert first["bits_per_byte"] == pytest.approx(nats / np.log(2) / len(text.encode()), rel=1e-6)
    assert total["tokens"] == sum(score["tokens"] for score in found["passages"][:-1])


def test_a_report_names_no_path(minicpm, brief, tmp_path: Path):
    secret = tmp_path / "somebody" / "model"
    secret.parent.mkdir()
    shutil.copytree(embedded.folder(), secret)
    done = minicpm("verify", "-m", secret, "--against", secret, "--json")
    assert report(done)["model"]["name"] == report(done)["distance"]["name"] == "model"
    assert "somebody" not in done.out


def test_a_model_is_no_distance_from_itself(minicpm):
    distance = report(minicpm("verify", "--against", embedded.folder(), "--json"))["distance"]
    assert (distance["kl"], distance["max_kl"], distance["top1_agreement"]) == (0, 0, 1)
    assert distance["perplexity"] == distance["reference_perplexity"]


def test_rounding_is_told_beside_the_weights_it_was_done_to(minicpm, tmp_path: Path):
    """The same weights in float32: what is left is the rounding of activations, keys and values."""
    floats = as_floats(embedded.folder(), tmp_path / "floats")
    distance = report(minicpm("verify", "--against", floats, "--json"))["distance"]
    assert 0 < distance["kl"] < 0.02
    assert distance["top1_agreement"] > 0.9
    assert distance["backend"] == "numpy"


def test_published_files_are_known_by_content(minicpm, real_tokenizer: Path, real_configs: Path, tmp_path: Path):
    hashes = {
        hashlib.sha256(path.read_bytes()).hexdigest(): path.name
        for path in [*real_tokenizer.iterdir(), real_configs / "MiniCPM-2B-sft-bf16" / "config.json"]
    }
    assert {sha256: hashes[sha256].replace(".feb2024", "") for sha256 in FILES_SHA256} == {
        sha256: name.split()[0] for sha256, name in FILES_SHA256.items()
    }
    tokenizer = Tokenizer.from_folder(real_tokenizer)
    assert tuple(tokenizer.encode(f"<用户>{QUESTION}<AI>")) == PROMPT_IDS


def test_published_perplexities_are_those_of_the_shapes_they_were_measured_on(real_configs: Path):
    names = {}
    for folder in ("MiniCPM-2B-sft-bf16", "MiniCPM-1B-sft-bf16"):
        path = next((real_configs / folder).glob("config*.json"))
        raw = json.loads(path.read_text())
        published = PERPLEXITIES[raw["hidden_size"], raw["num_hidden_layers"]]
        names[folder] = {one.model for one in published}
    assert names == {"MiniCPM-2B-sft-bf16": {"MiniCPM-2B"}, "MiniCPM-1B-sft-bf16": {"MiniCPM-1B"}}


def test_a_text_is_read_in_whole_windows_that_share_nothing(minicpm, brief, tmp_path: Path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(passage.text for passage in passages()) * 2, encoding="utf-8")
    windows = report(minicpm("verify", "--text", text, "--json"))["windows"]
    llm = LLM()
    ids = llm.tokenizer.encode(text.read_text(encoding="utf-8"))
    assert (windows["tokens"], windows["windows"]) == (len(ids), len(ids) // 2048)
    means = []
    for start in range(0, windows["windows"] * 2048, 2048):
        row = ids[start : start + 2048]
        means.append(-log_softmax(llm.logits(row))[np.arange(2047), row[1:]].mean())
    assert windows["perplexity"] == pytest.approx(np.exp(np.mean(means)), rel=1e-6)


@pytest.mark.parametrize(
    "content, words", [(b"Too short.", "one window takes 2,048"), (b"\xff\xfe" * 9000, "no UTF-8 text")]
)
def test_a_text_that_cannot_be_measured_is_one_sentence(minicpm, tmp_path: Path, content: bytes, words: str):
    (tmp_path / "text.txt").write_bytes(content)
    done = minicpm("verify", "--text", tmp_path / "text.txt")
    assert (done.code, done.out) == (1, "")
    assert words in done.err


def test_models_that_split_texts_otherwise_are_not_compared(minicpm, toy: Path):
    done = minicpm("verify", "--against", toy)
    assert done.code == 1
    assert "splits texts into other tokens" in done.err


def test_people_read_hashes_scores_and_the_answer(minicpm):
    done = minicpm("verify")
    assert done.code == 0
    for words in ("tokenizer.model", "names Beijing", "bits a byte", "other ids than MiniCPM-2B"):
        assert words in done.out
    assert "published  " not in done.out


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """One text is read, not all of them."""
    monkeypatch.setattr("minicpm.eval.verification.passages", lambda: passages()[:1])


def test_an_answer_is_the_expected_one_if_it_has_any_of_the_city_s_names(minicpm, brief, monkeypatch):
    answer = LLM().chat(QUESTION, temperature=0, repetition_penalty=1).text
    for names, is_expected in [(("Tokyo", "東京"), False), (("東京", answer[-7:]), True)]:
        monkeypatch.setattr("minicpm.eval.verification.ANSWERS", names)
        assert report(minicpm("verify", "--json"))["example"]["is_expected"] is is_expected


def test_people_are_told_that_an_answer_does_not_name_the_city(minicpm, brief, monkeypatch):
    monkeypatch.setattr("minicpm.eval.verification.ANSWERS", ("Tokyo",))
    assert "does not name Beijing" in minicpm("verify").out


def test_a_prompt_with_the_published_ids_is_told(minicpm, brief, monkeypatch):
    ids = report(minicpm("verify", "--json"))["example"]["prompt_ids"]
    monkeypatch.setattr("minicpm.eval.verification.PROMPT_IDS", tuple(ids))
    assert report(minicpm("verify", "--json"))["example"]["has_published_ids"]


def test_hidden_files_have_no_hash(minicpm, brief, tmp_path: Path):
    folder = Path(shutil.copytree(embedded.folder(), tmp_path / "model"))
    (folder / ".DS_Store").write_bytes(b"x")
    names = {file["name"] for file in report(minicpm("verify", "-m", folder, "--json"))["files"]}
    assert "config.json" in names and ".DS_Store" not in names
