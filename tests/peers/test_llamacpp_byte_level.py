"""Byte-level tokenizers in llama.cpp: the ids that we give, for every way to split. `make test-peers`."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import byte_level
from environments import needing, python_of
from minicpm.formats.checkpoint import open_checkpoint
from small_gguf import Parts
from small_models import ONE_BLOCK

pytestmark = needing("llamacpp", "llama.cpp")

# Known since llama.cpp b9354.
IS_NEW = {"minicpm5"}


def written(pre: str, name: str, path: Path) -> Path:
    """A file of a small model whose tokenizer splits as `pre`, under a name."""
    tokenizer = byte_level.published(pre)
    parts = Parts(replace(ONE_BLOCK, vocab_size=tokenizer.get_vocab_size()))
    for key in [key for key in parts.fields if key.startswith("tokenizer.")]:
        del parts.fields[key]
    fields = byte_level.fields(byte_level.gguf_values(tokenizer, name))
    parts.fields.update({field.key: field for field in fields})
    return parts.write(path)


def llamacpp_ids(path: Path, texts: list[str]) -> list[list[int]] | dict[str, str]:
    script = Path(__file__).with_name("llamacpp_tokenizes.py")
    request = json.dumps({"file": str(path), "texts": texts})
    done = subprocess.run(
        [python_of("llamacpp"), script], input=request, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[list[int]] | dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("pre", byte_level.PUBLISHED)
def test_every_way_to_split_gives_llama_cpps_ids(pre: str, tmp_path: Path):
    path, texts = written(pre, pre, tmp_path / "model.gguf"), byte_level.odd_texts(1000)
    found = llamacpp_ids(path, texts)
    if isinstance(found, dict) and pre in IS_NEW:
        pytest.skip("this llama.cpp is older than b9354, which knows minicpm5")
    with open_checkpoint(path) as checkpoint:
        tokenizer = checkpoint.tokenizer()
    assert dict(zip(texts, found)) == {text: tokenizer.encode(text) for text in texts}


def test_an_unknown_way_to_split_is_refused_there_too(tmp_path: Path):
    found = llamacpp_ids(written("gpt-2", "no-such-family", tmp_path / "model.gguf"), ["x"])
    assert found == {"error": "llama.cpp could not load it"}
