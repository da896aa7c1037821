"""Every code block of the release's README works as typed behind `python -m minicpm.compat`, or a sentence helps."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import pytest
import torch

from compat.conftest import ENVIRONMENT, Forks, write
from interrupts import default_interrupts
from minicpm import hub
from minicpm.compat import main

README = Path(__file__).parents[1] / "data" / "release" / "README-en.md"
SHA256 = "9d210ac4289a7d6aa67d75a1f0fb06601b60f719ec673b203c60cbb9fbca049b"
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
BLOCKS = [(language, textwrap.dedent(text)) for _, language, text in FENCE.findall(README.read_text(encoding="utf-8"))]
FORK, CONVERSION, BATCH, QUICK_START, ITS_OUTPUT, PICTURES, *ULTRAEVAL, DEMOS, BIBTEX = range(len(BLOCKS))
NO_CUDA = "minicpm.compat: this machine has no CUDA device, so the script runs on the CPU"


def lines(number: int, **paths: Path) -> list[list[str]]:
    """The commands of a block as words, `<hf_repo_path>` and the like replaced; comments left out."""
    text = BLOCKS[number][1]
    for name, path in paths.items():
        text = text.replace(f"<{name}>", shlex.quote(str(path)))
    assert "<" not in text
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def test_the_readme_has_the_blocks_that_are_tried_here():
    assert hashlib.sha256(README.read_bytes()).hexdigest() == SHA256
    assert [language for language, _ in BLOCKS] == [
        *("shell", "shell", "shell", "python", "shell", "python"),
        *("shell", "shell", "shell", "shell", ""),
    ]
    assert "inference/vllm" in BLOCKS[FORK][1] and "convert_hf_to_vllmcpm.py" in BLOCKS[CONVERSION][1]
    assert "inference.py" in BLOCKS[BATCH][1] and "MiniCPM-2B-dpo-bf16" in BLOCKS[QUICK_START][1]
    assert BLOCKS[ITS_OUTPUT][1].startswith("The capital city of China is Beijing.")
    assert "MiniCPM-V" in BLOCKS[PICTURES][1] and "vllm_based_demo.py" in BLOCKS[DEMOS][1]
    assert len(ULTRAEVAL) == 3 and "UltraEval" in BLOCKS[ULTRAEVAL[0]][1] and "@inproceedings" in BLOCKS[BIBTEX][1]


@pytest.mark.parametrize("number", [FORK, *ULTRAEVAL])
def test_what_is_of_other_programs_is_answered_in_a_sentence(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    for words in lines(number):
        if words == ["pip", "install", "-e", "."]:
            continue  # inside the clone of UltraEval, which the line before it answered
        assert main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_conversion_and_the_batch_example_run_as_typed(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The README's two steps, one after the other, over a small model in the layout of the published one."""
    published = tmp_path / "MiniCPM-2B-dpo-bf16"
    shutil.copytree(golden / "minicpm2b_tied", published, ignore=shutil.ignore_patterns("golden*", "padded*", "meta*"))
    config = json.loads((published / "config.json").read_text(encoding="utf-8"))
    short = {"max_position_embeddings": 96}  # a random model does not end its answers
    (published / "config.json").write_text(json.dumps(config | short), encoding="utf-8")
    paths = {"hf_repo_path": published, "vllmcpm_repo_path": tmp_path / "vllmcpm"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    (convert,) = lines(CONVERSION, **paths)
    assert main(convert) == 0
    assert f"running: minicpm convert {published} {tmp_path / 'vllmcpm'} --to vllmcpm" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "vllmcpm").iterdir()} >= {
        *("config.json", "pytorch_model.pt", "tokenizer.json"),
        *("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    }

    change_folder, batch = lines(BATCH, **paths)
    assert main(change_folder) == 2
    assert "minicpm run -m MODEL" in capsys.readouterr().err
    write(tmp_path / "prompts" / "prompt_final.txt", "Which city is the capital of China?\n天津之眼是什么？\n")
    assert main(batch) == 0
    out, err = capsys.readouterr()
    assert re.findall(r"^================\n<用户>: (.*)\n<AI>:\n", out, re.MULTILINE) == [
        "Which city is the capital of China?",
        "天津之眼是什么？",
    ]
    assert f"running: minicpm run -m {tmp_path / 'vllmcpm'} -f prompts/prompt_final.txt --temperature 0.5" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_the_quick_start_runs_byte_for_byte_with_one_notice(compat: Forks, published: Path, tmp_path: Path):
    done = compat(write(tmp_path / "quick_start.py", BLOCKS[QUICK_START][1]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")
    assert [line for line in done.stderr.splitlines() if line.startswith("minicpm.compat")] == [NO_CUDA]
    assert "EXECUTED" not in done.stdout + done.stderr


def test_the_picture_block_is_refused_in_one_honest_sentence(compat: Forks, tmp_path: Path):
    pytest.importorskip("PIL")
    done = compat(write(tmp_path / "pictures.py", BLOCKS[PICTURES][1]))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == ("minicpm.compat: openbmb/MiniCPM-V sees pictures; this version runs the text models only\n")


def test_the_demos_start_as_typed(tmp_path: Path):
    pytest.importorskip("gradio")
    model = hub.resolve(None)
    over_vllm, over_hf = lines(DEMOS, hf_repo_path=model, vllmcpm_repo_path=tmp_path / "vllmcpm")
    assert over_vllm[:2] == ["python", "demo/vllm_based_demo.py"]  # tests/compat/test_commands.py
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "minicpm.compat", *over_hf, "--server_port", str(port)]  # 7860 may be taken
    with (
        default_interrupts(),
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process,
    ):
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line.strip())
                if said[-1].startswith("http://"):
                    break
            assert said[0] == f"minicpm.compat: running: minicpm demo -m {model} --port {port}"
            with urllib.request.urlopen(said[-1]) as response:
                assert "MiniCPM" in response.read().decode()
        finally:
            process.send_signal(signal.SIGTERM)


def test_the_documents_quote_the_citation_and_the_licence():
    root = README.parents[3]
    entry = re.sub(r"\s+", " ", BLOCKS[BIBTEX][1]).strip()
    (licence,) = re.findall(r"\[the General Model License \(GML\)\]\((.*)\)\.", README.read_text(encoding="utf-8"))
    for name in ("README.md", "README-zh.md", "docs/models.md"):
        text = (root / name).read_text(encoding="utf-8")
        assert entry in re.sub(r"\s+", " ", text), name
        assert licence in text, name
