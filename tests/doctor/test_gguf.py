"""Every known fault of a GGUF file: made, found by name, repaired in a copy, and gone when the copy is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from broken_models import CONFIG, GGUF_FAULTS, TOKENIZED_TEXTS, broken_gguf, names, nano_gguf
from minicpm.doctor.diagnosis import diagnose
from minicpm.errors import MiniCPMError
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.gguf import GgufFile
from minicpm.tokenizer import PieceType, read_sentencepiece
from small_gguf import Parts


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound GGUF file of a trained model."""
    return nano_gguf(tmp_path_factory.mktemp("nano"))


def require_same_file(one: Path, other: Path) -> None:
    first, second = GgufFile(one), GgufFile(other)
    assert {k: (f.type, f.value) for k, f in first.fields().items()} == {
        k: (f.type, f.value) for k, f in second.fields().items()
    }
    assert first.tensors.keys() == second.tensors.keys()
    for name in first.tensors:
        assert first.view(name) == second.view(name), name
    first.close()
    second.close()


def test_missing_mup_keys_become_the_constants_of_2024(tmp_path: Path):
    parts = Parts(CONFIG)
    parts.put("tokenizer.chat_template", parts.fields["general.architecture"].type, "{{ messages[0]['content'] }}")
    sound = parts.write(tmp_path / "sound.gguf")
    for key in ("embedding_scale", "residual_scale", "logit_scale"):
        del parts.fields[f"minicpm.{key}"]
    broken = parts.write(tmp_path / "broken.gguf")
    with pytest.raises(MiniCPMError, match="missing"):
        open_checkpoint(broken)
    done = diagnose(broken, copy=tmp_path / "out.gguf")
    assert (done.left, names(done)) == ((), ["missing-mup"])
    with open_checkpoint(tmp_path / "out.gguf") as repaired, open_checkpoint(sound) as expected:
        assert repaired.config == expected.config == CONFIG
    with pytest.raises(MiniCPMError):
        open_checkpoint(broken)  # never in place


def test_the_official_pieces_stand_in_the_order_of_their_scores(real_tokenizer: Path):
    """The assumption of the repair of flat scores."""
    model = read_sentencepiece(real_tokenizer / "tokenizer.model")
    scores = [score for score, kind in zip(model.scores, model.types) if kind == PieceType.NORMAL]
    assert len(scores) > 120_000
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores)


# Those of files with other constants or another tokenizer have tests of their own.
OTHER_MODELS = ("missing-mup", "no-space-prefix", "byte-level-tokenizer", "flat-scores")


@pytest.mark.parametrize("fault", [fault for fault in GGUF_FAULTS if fault not in OTHER_MODELS])
def test_a_broken_file_becomes_the_sound_one(nano: Path, tmp_path: Path, fault: str):
    broken = broken_gguf(nano, tmp_path / "broken.gguf", fault)
    done = diagnose(broken, copy=tmp_path / "out.gguf")
    assert (done.left, names(done)) == ((), [fault])
    require_same_file(tmp_path / "out.gguf", nano)


@pytest.mark.parametrize("fault", ["byte-level-tokenizer", "flat-scores"])
def test_a_repaired_tokenizer_splits_texts_as_before(nano: Path, tmp_path: Path, fault: str):
    broken = broken_gguf(nano, tmp_path / "broken.gguf", fault)
    with open_checkpoint(broken, allow_quantized=True) as checkpoint, pytest.raises(MiniCPMError):
        checkpoint.tokenizer()
    done = diagnose(broken, copy=tmp_path / "out.gguf")
    assert (done.left, names(done)) == ((), [fault])
    with (
        open_checkpoint(tmp_path / "out.gguf", allow_quantized=True) as repaired,
        open_checkpoint(nano, allow_quantized=True) as sound,
    ):
        one, other = repaired.tokenizer(), sound.tokenizer()
        assert [one.encode(text) for text in TOKENIZED_TEXTS] == [other.encode(text) for text in TOKENIZED_TEXTS]


def test_several_faults_are_repaired_at_once(nano: Path, tmp_path: Path):
    """Flat scores keep the model from being run, so the order of its rows is known only when they are repaired."""
    for number, fault in enumerate(("row-order", "flat-scores", "missing-template", "wrong-rope-theta")):
        nano = broken_gguf(nano, tmp_path / f"{number}.gguf", fault)
    found = diagnose(nano)
    assert sorted(names(found)) == ["flat-scores", "missing-template"]
    assert "all scores" in found.silence
    done = diagnose(nano, copy=tmp_path / "out.gguf")
    assert (done.left, sorted(names(done))) == (
        (),
        ["flat-scores", "missing-template", "row-order", "wrong-rope-theta"],
    )
    assert not diagnose(tmp_path / "out.gguf").left


def test_a_head_that_repeats_the_embedding_is_left_out(tmp_path: Path):
    parts = Parts(CONFIG)
    tensor, data = parts.tensors["token_embd.weight"]
    parts.store("output.weight", tensor.type, data, tensor.shape)
    broken = parts.write(tmp_path / "broken.gguf")
    assert "repeated-head" in names(diagnose(broken))
    assert not diagnose(broken, copy=tmp_path / "out.gguf").left
    with open_checkpoint(tmp_path / "out.gguf") as repaired:
        assert repaired.config.tie_word_embeddings
