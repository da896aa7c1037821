"""Files with the known faults in real llama.cpp: wrong before doctor, as the sound file after. `make test-peers`."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broken_models import GGUF_FAULTS, QUESTION, TEXTS, broken_gguf, nano_of_2024, wide_nano
from environments import needing, python_of
from minicpm.cli.main import main
from minicpm.export.gguf import write_gguf
from small_models import WIDE, random_weights, write_model

PYTHON = python_of("llamacpp")

pytestmark = needing("llamacpp", "llama.cpp")

# What a user sees of a fault, and nothing else of what is looked at.
SEEN = {
    "missing-mup": "nats",
    "flat-scores": "ids",
    "byte-level-tokenizer": "ids",
    "wrong-bos": "ids",
    "wrong-eos": "answer",
    "no-bos": "ids",
    "adds-eos": "ids",
    "no-space-prefix": "ids",
    "wrong-rope-theta": "nats",
    "lost-scales": "nats",
    "row-order": "nats",
    "missing-template": "answer",
    "wrong-template": "answer",
}
# llama.cpp's default is MiniCPM's, so this one is seen in other programs only.
UNSEEN = ("missing-rope-theta",)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sound files by what a fault needs: a trained model, another width than 256, MiniCPM-2B's own tokenizer."""
    root = tmp_path_factory.mktemp("sound")
    files = {name: root / f"{name}.gguf" for name in ("nano", "wide", "official")}
    write_gguf(nano_of_2024(root / "nano"), files["nano"])
    write_gguf(wide_nano(root / "nano", root / "wide"), files["wide"])
    return files


@pytest.fixture(scope="module")
def official(sound: dict[str, Path], real_tokenizer: Path) -> Path:
    config = replace(WIDE, vocab_size=122753, hidden_size=32, intermediate_size=64)
    folder = write_model(sound["official"].parent / "official", config, random_weights(config, std=0.1))
    for file in real_tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    write_gguf(folder, sound["official"], dtype="float16")
    return sound["official"]


def asked(file: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("llamacpp_chats.py")
    request = json.dumps({"file": str(file), "texts": TEXTS, "question": QUESTION})
    done = subprocess.run([PYTHON, script], input=request, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        return {"error": done.stderr[-500:]}
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def repaired(broken: Path, destination: Path) -> Path:
    assert main(["doctor", str(broken), "--fix", str(destination)]) == 0
    return destination


@pytest.mark.parametrize("fault", [*SEEN, *UNSEEN])
def test_llama_cpp_is_wrong_before_the_repair_and_right_after_it(
    sound: dict[str, Path], request: pytest.FixtureRequest, tmp_path: Path, fault: str
):
    model = {"missing-mup": "wide", "no-space-prefix": "official"}.get(fault, "nano")
    source = request.getfixturevalue("official") if model == "official" else sound[model]
    expected = asked(source)
    assert "error" not in expected
    broken = broken_gguf(source, tmp_path / "broken.gguf", fault)
    before, after = asked(broken), asked(repaired(broken, tmp_path / "repaired.gguf"))
    assert after == expected
    print(f"{fault}: {shown(before)} -> {shown(after)}")
    if fault in UNSEEN:
        assert before == expected
    elif SEEN[fault] == "nats":
        assert before.get("nats", 99) > expected["nats"] + 0.1
    else:
        assert before.get(SEEN[fault]) != expected.get(SEEN[fault])


def shown(told: dict[str, Any]) -> str:
    if "error" in told:
        return f"error {' '.join(told['error'].split())[-100:]!r}"
    return f"{told['nats']:.3f} nats, ids {told['ids'][1][:6]}, {told['answer']!r} ({told['finish']})"


def test_every_fault_of_a_gguf_file_is_proved():
    assert {*SEEN, *UNSEEN} == set(GGUF_FAULTS)


def test_flat_scores_of_the_official_tokenizer_are_repaired_to_its_ids(official: Path, tmp_path: Path):
    """The published files of 2024, as far as texts go."""
    broken = broken_gguf(official, tmp_path / "broken.gguf", "flat-scores")
    expected, before = asked(official)["ids"], asked(broken)["ids"]
    assert before[1:] != expected[1:]
    assert asked(repaired(broken, tmp_path / "repaired.gguf"))["ids"] == expected
