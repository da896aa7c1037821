"""The torch backend: single-token steps against the model, growing sequences, quantized weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from minicpm import LLM, SamplingParams
from minicpm.engine.backend import Row
from minicpm.engine.prompt import EmbeddingSpan, MixedIds, checked_ids
from minicpm.errors import GenerationError, ModelError
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.config import RopeScaling
from minicpm.hub import embedded
from minicpm.quant.format import PRESETS
from small_models import EVEN, ODD, write_model

torch = pytest.importorskip("torch")
from minicpm.engine.backends.torch import TorchBackend  # noqa: E402
from minicpm.engine.backends.torch.decode import Decoder, RowAttention, project  # noqa: E402

torch.set_num_threads(1)

GREEDY = SamplingParams(temperature=0, repetition_penalty=1.0, ignore_eos=True)
STRETCHED = replace(EVEN, max_position_embeddings=64, rope_scaling=RopeScaling("dynamic", 4.0))
SHAPES = {
    "odd": ODD,
    "even": EVEN,
    "untied": replace(EVEN, tie_word_embeddings=False),
    "linear": replace(EVEN, rope_scaling=RopeScaling("linear", 2.0)),
    "dynamic": STRETCHED,
}
# Float32 sums in another order: found 3e-6.
CLOSE = 5e-5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    return {name: write_model(home / name, config) for name, config in SHAPES.items()}


def load(folder: Path, dtype: str = "auto") -> TorchBackend:
    return TorchBackend(open_checkpoint(folder, allow_quantized=True), dtype=dtype, device="cpu")


def ids_of(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 203, count).tolist()


def prefilled(backend: TorchBackend, lengths: list[int], rope_length: int):
    """Sequences that hold so many tokens, and what comes next in each."""
    texts = [ids_of(length + 1, seed) for seed, length in enumerate(lengths)]
    sequences = [backend.new_sequence(rope_length) for _ in texts]
    backend.forward([Row(sequence, text[:-1], "none") for sequence, text in zip(sequences, texts)])
    return sequences, texts


@pytest.mark.parametrize("shape", SHAPES)
def test_single_tokens_of_several_texts_equal_the_model_that_reads_them_whole(folders: dict[str, Path], shape: str):
    backend = load(folders[shape])
    lengths = [1, 7, 40, 90]
    sequences, texts = prefilled(backend, lengths, 200)
    found = backend.forward([Row(sequence, text[-1:]) for sequence, text in zip(sequences, texts)])
    for text, logits in zip(texts, found):
        expected = backend.forward([Row(backend.new_sequence(200), text)])[0]
        assert logits.shape == expected.shape == (1, 203)
        assert np.abs(logits - expected).max() < CLOSE


def test_every_text_keeps_its_own_rotary_base(folders: dict[str, Path]):
    backend = load(folders["dynamic"])
    text = ids_of(50)
    sequences = [backend.new_sequence(length) for length in (60, 128, 256)]
    backend.forward([Row(sequence, text[:-1], "none") for sequence in sequences])
    found = backend.forward([Row(sequence, text[-1:]) for sequence in sequences])
    for sequence, logits in zip(sequences, found):
        expected = backend.forward([Row(backend.new_sequence(sequence.rope_length), text)])[0]
        assert np.abs(logits - expected).max() < CLOSE
    assert np.abs(found[0] - found[2]).max() > 100 * CLOSE


def test_single_tokens_give_the_original_codes_logits(golden: Path):
    for name in ("minicpm2b_tied", "minicpm2b_untied_sharded"):
        backend = load(golden / name)
        reference = load_file(golden / name / "golden.safetensors")
        sequences = [backend.new_sequence(len(reference["input_ids"][0])) for _ in reference["input_ids"]]
        for position, column in enumerate(reference["input_ids"].T):
            found = backend.forward([Row(s, [token]) for s, token in zip(sequences, column.tolist())])
            for logits, expected in zip(found, reference["logits"]):
                assert np.abs(logits[0] - expected[position]).max() < 1e-4


def spanned(backend: TorchBackend, text: list[int], first: int, last: int) -> MixedIds:
    """The text with some tokens replaced by spans of their own embeddings, multiplied by scale_emb."""
    with torch.inference_mode():
        embeddings = backend._embed(text[first:last], None).float().numpy()
    return checked_ids(
        [*text[:first], EmbeddingSpan(embeddings, b"k"), *text[last:]], backend.vocab_size, backend.embedding_size
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_span_of_scaled_token_embeddings_gives_the_tokens_logits(folders: dict[str, Path], dtype: str):
    backend = load(folders["even"], dtype)
    text = ids_of(40)
    expected = backend.forward([Row(backend.new_sequence(40), text, "all")])[0]
    mixed = spanned(backend, text, 7, 30)
    assert np.array_equal(backend.forward([Row(backend.new_sequence(40), mixed, "all")])[0], expected)
    hidden = [backend.hidden_states([Row(backend.new_sequence(40), ids)])[0] for ids in (text, mixed)]
    assert np.array_equal(*hidden)


def test_a_position_of_a_span_never_enters_the_step_of_single_tokens(folders: dict[str, Path]):
    """On a GPU that is the recorded one, which looks token ids up in the embedding."""
    backend = load(folders["even"])
    text = ids_of(12)
    expected = backend.forward([Row(backend.new_sequence(12), text, "all")])[0]
    mixed = spanned(backend, text, 3, 6)
    stepped: list[int] = []
    whole = backend._decode

    def noted(sequences, token_ids):
        stepped.extend(token_ids)
        return whole(sequences, token_ids)

    backend._decode = noted
    sequence, other = backend.new_sequence(12), backend.new_sequence(12)
    for i in range(12):
        # Beside it another text gets a token: a step with a span in any row goes the other way as a whole.
        found = backend.forward([Row(sequence, mixed[i : i + 1]), Row(other, text[i : i + 1])])
        assert all(np.abs(logits - expected[i]).max() < CLOSE for logits in found)
    assert stepped == [token for i, token in enumerate(text) if not 3 <= i < 6 for _ in range(2)]


@pytest.mark.parametrize("joins", [False, True])
def test_joining_layers_changes_nothing(folders: dict[str, Path], joins: bool):
    backend = load(folders["odd"])
    sequences, texts = prefilled(backend, [5, 9], 100)
    expected = backend.forward([Row(backend.new_sequence(100), text) for text in texts])
    decoder = Decoder(backend._model, joins=joins)
    with torch.inference_mode():
        for sequence in sequences:
            sequence.reserve(sequence.length + 1)
        ids = torch.tensor([text[-1] for text in texts])
        found = decoder.step(ids, RowAttention(backend._model, sequences), project).numpy()
    assert np.abs(found - np.concatenate(expected)).max() < CLOSE
    # The model itself now works on views of the joined weights.
    again = backend.forward([Row(backend.new_sequence(100), text) for text in texts])
    assert all(np.array_equal(one, other) for one, other in zip(again, expected))


def test_half_precision_differs_by_its_rounding(folders: dict[str, Path]):
    exact, rounded = load(folders["even"]), load(folders["even"], "bfloat16")
    text = ids_of(30)
    expected = exact.forward([Row(exact.new_sequence(30), text, "all")])[0]
    whole = rounded.forward([Row(rounded.new_sequence(30), text, "all")])[0]
    sequence = rounded.new_sequence(30)
    single = np.concatenate([rounded.forward([Row(sequence, [token])])[0] for token in text])
    noise = np.abs(whole - expected).max()
    assert 0 < np.abs(single - expected).max() < 2 * noise


def test_a_text_goes_on_where_its_memory_grows(folders: dict[str, Path]):
    backend = load(folders["even"])
    text = ids_of(256)
    sequence = backend.new_sequence(256)
    backend.forward([Row(sequence, text[:10], "none")])
    capacities = set()
    for token in text[10:255]:
        backend.forward([Row(sequence, [token], "none")])
        capacities.add(sequence.capacity)
    sequence.memory = sequence.memory[..., :255, :].clone()  # full
    found = backend.forward([Row(sequence, text[255:])])[0]
    assert capacities == {256} and sequence.capacity == 256
    expected = backend.forward([Row(backend.new_sequence(256), text)])[0]
    assert np.abs(found - expected).max() < CLOSE


def test_only_wanted_logits_come_back(folders: dict[str, Path]):
    backend = load(folders["even"])
    sequences, texts = prefilled(backend, [3, 4, 5], 50)
    kinds = ("none", "last", "all")
    found = backend.forward([Row(s, text[-1:], kind) for s, text, kind in zip(sequences, texts, kinds)])
    assert [logits.shape for logits in found] == [(0, 203), (1, 203), (1, 203)]
    expected = backend.forward([Row(backend.new_sequence(50), texts[2])])[0]
    assert np.abs(found[2] - expected).max() < CLOSE


def test_hidden_states_of_single_tokens_are_those_of_the_whole_text(folders: dict[str, Path]):
    backend = load(folders["even"])
    text = ids_of(6)
    whole = backend.hidden_states([Row(backend.new_sequence(6), text)])[0]
    sequence = backend.new_sequence(6)
    single = np.concatenate([backend.hidden_states([Row(sequence, [token])])[0] for token in text])
    assert whole.shape == (6, 256)
    assert np.abs(single - whole).max() < CLOSE


def test_a_step_that_runs_out_of_memory_leaves_its_texts_as_they_were(folders: dict[str, Path], monkeypatch):
    backend = load(folders["even"])
    sequences, texts = prefilled(backend, [256, 9], 256)
    rows = [Row(sequence, text[-1:]) for sequence, text in zip(sequences, texts)]

    def full(self, length: int) -> None:
        raise torch.OutOfMemoryError("no")

    with monkeypatch.context() as patch:
        patch.setattr("minicpm.engine.backends.torch.ragged.TorchSequence.reserve", full)
        with pytest.raises(GenerationError, match="out of memory on cpu with 267 tokens in 2 sequences"):
            backend.forward(rows)
    assert [sequence.length for sequence in sequences] == [256, 9]
    expected = backend.forward([Row(backend.new_sequence(256), texts[1])])[0]
    assert np.abs(backend.forward(rows)[1] - expected).max() < CLOSE


@pytest.mark.parametrize("preset", PRESETS)
def test_a_quantized_model_decodes_what_it_reads(folders: dict[str, Path], tmp_path: Path, preset: str):
    quantize_folder(folders["even"], tmp_path / preset, preset=preset)
    backend = load(tmp_path / preset, "float32")
    sequences, texts = prefilled(backend, [1, 40], 50)
    found = backend.forward([Row(sequence, text[-1:]) for sequence, text in zip(sequences, texts)])
    for text, logits in zip(texts, found):
        expected = backend.forward([Row(backend.new_sequence(50), text)])[0]
        assert np.abs(logits - expected).max() < CLOSE


@pytest.mark.parametrize("preset", ["int4", "int8"])
def test_a_quantized_model_answers_as_its_logits_say(golden: Path, tmp_path: Path, preset: str):
    quantize_folder(golden / "minicpm2b_tied", tmp_path / preset, preset=preset)
    llm = LLM(tmp_path / preset, backend="torch", dtype="float32", device="cpu", threads=1)
    assert llm.backend.name == "torch"
    prompts = [ids_of(size, size) for size in (3, 30)]
    for prompt, completion in zip(prompts, llm.generate(prompts, GREEDY, max_tokens=8)):
        expected = llm.logits(prompt + list(completion.ids[:-1]))[len(prompt) - 1 :].argmax(axis=1)
        assert list(completion.ids) == expected.tolist()


def test_the_built_in_model_says_the_same_in_float32_and_from_its_codes():
    torch_llm, numpy_llm = (LLM(backend=backend, lookup="off") for backend in ("torch", "numpy"))
    prompt = torch_llm.tokenizer.encode("Which city is the capital of China?", add_bos=True)
    # The integer engine rounds activations to 8 bits; docs/numerics.md. On random logits this would be above 0.5.
    found, expected = (llm.logits(prompt) for llm in (torch_llm, numpy_llm))
    assert np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()) < 0.05


def test_quantized_weights_stay_with_the_native_engine_unless_a_gpu_is_named():
    assert LLM().backend.name in ("native", "numpy")
    assert LLM(device="cpu").backend.name in ("native", "numpy")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="device cuda is not available: torch sees 0 cuda devices"):
            LLM(embedded.folder(), device="cuda")
