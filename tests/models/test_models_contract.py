"""What transformers' common tests ask of every model class, asked of ours: loading, outputs, vocabulary, training."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from minicpm.errors import ModelError
from minicpm.models import MiniCPMConfig, MiniCPMForCausalLM, MiniCPMForSequenceClassification, MiniCPMModel

Build = Callable[..., MiniCPMForCausalLM]
CLASSES = (MiniCPMModel, MiniCPMForCausalLM, MiniCPMForSequenceClassification)
AUTO = {
    MiniCPMModel: AutoModel,
    MiniCPMForCausalLM: AutoModelForCausalLM,
    MiniCPMForSequenceClassification: AutoModelForSequenceClassification,
}
IDS = torch.randint(3, 97, (3, 9), generator=torch.Generator().manual_seed(1))
every_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
tied_or_not = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])


def build(kind: type, small: Build, **changes: Any) -> Any:
    config = copy.deepcopy(small().config)
    for name, value in ({"pad_token_id": 0, "num_labels": 3} | changes).items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return kind(config).eval()


def facts(config: MiniCPMConfig) -> dict[str, Any]:
    """All that a config says, but where it was loaded from."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


def first(output: Any) -> torch.Tensor:
    return output[0]


def run(model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        return first(model(*args, **kwargs))


# Saving and loading


@every_class
@tied_or_not
def test_a_saved_model_loads_with_every_weight_and_nothing_else(small: Build, tmp_path: Path, kind: type, tied: bool):
    model = build(kind, small, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    again, info = AUTO[kind].from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is kind
    assert not any(info.values()), info
    assert torch.equal(run(again, IDS), run(model, IDS))
    assert facts(again.config) == facts(model.config) | {"dtype": "float32"}
    if kind is MiniCPMForCausalLM:
        assert (again.lm_head.weight is again.model.embed_tokens.weight) is tied
        assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied


@every_class
def test_a_model_is_saved_in_shards_and_in_half_precision(small: Build, tmp_path: Path, kind: type):
    model = build(kind, small).bfloat16()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = AUTO[kind].from_pretrained(tmp_path)
    assert again.dtype is torch.bfloat16
    assert torch.equal(run(again, IDS), run(model, IDS))
    assert AUTO[kind].from_pretrained(tmp_path, dtype=torch.float32).dtype is torch.float32


def test_a_model_in_float64_is_saved_and_loaded(small: Build, tmp_path: Path):
    model = build(MiniCPMForCausalLM, small).double()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float64}
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert run(again, IDS).dtype is torch.float64


@tied_or_not
def test_the_decoder_and_the_model_with_a_head_load_each_others_folders(small: Build, tmp_path: Path, tied: bool):
    whole = build(MiniCPMForCausalLM, small, tie_word_embeddings=tied)
    whole.save_pretrained(tmp_path / "whole")
    decoder = AutoModel.from_pretrained(tmp_path / "whole")
    assert torch.equal(run(decoder, IDS), run(whole.model, IDS))
    decoder.save_pretrained(tmp_path / "decoder")
    again, info = MiniCPMForCausalLM.from_pretrained(tmp_path / "decoder", output_loading_info=True)
    assert set(info["missing_keys"]) == (set() if tied else {"lm_head.weight"})
    assert torch.equal(run(again.model, IDS), run(decoder, IDS))
    if tied:
        assert torch.equal(run(again, IDS), run(whole, IDS))


@every_class
def test_a_missing_weight_is_reported_and_initialised(small: Build, tmp_path: Path, kind: type):
    model = build(kind, small)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    names = [next(name for name in state if name.endswith(end)) for end in ("up_proj.weight", "input_layernorm.weight")]
    save_file({name: tensor for name, tensor in state.items() if name not in names}, tmp_path / "model.safetensors")
    again, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == set(names)
    weight, norm = (again.get_parameter(name) for name in names)
    assert 0.1 < weight.std() < 0.4  # initializer_range is 0.2
    assert torch.equal(norm, torch.ones_like(norm))


def test_a_tied_model_loads_from_the_head_alone(small: Build, tmp_path: Path):
    model = build(MiniCPMForCausalLM, small)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["lm_head.weight"] = state.pop("model.embed_tokens.weight")
    save_file(state, tmp_path / "model.safetensors")
    again, info = MiniCPMForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert torch.equal(run(again, IDS), run(model, IDS))


@every_class
def test_a_model_is_copied_and_pickled_whole(small: Build, kind: type):
    model = build(kind, small)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(again, IDS), run(model, IDS))
        assert facts(again.config) == facts(model.config)


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, torch.device("cpu"), "auto"], ids=str)
def test_a_device_map_changes_no_number(small: Build, tmp_path: Path, device_map: Any):
    model = build(MiniCPMForCausalLM, small)
    model.save_pretrained(tmp_path)
    if device_map == "auto" and torch.cuda.is_available():
        pytest.skip("auto chooses the GPU")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=device_map)
    assert torch.equal(run(again, IDS), run(model, IDS))


@every_class
def test_a_model_is_made_on_the_meta_device_without_memory(small: Build, kind: type):
    config = small().config
    with torch.device("meta"):
        model = kind(config)
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}


# A config that was changed after it was made


IMPOSSIBLE = [
    {"head_dim": 40},
    {"hidden_size": 33},
    {"num_attention_heads": 8},
    {"num_key_value_heads": 3},
    {"hidden_act": "gelu"},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1e4}},
    {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}, "rope_theta": 1e4}},
    {"scale_depth": 0.0},
    {"vocab_size": 0},
]


@every_class
@pytest.mark.parametrize("change", IMPOSSIBLE, ids=str)
def test_an_impossible_config_makes_no_model_and_is_not_saved(
    small: Build, tmp_path: Path, kind: type, change: dict[str, Any]
):
    config = copy.deepcopy(small().config)
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(ModelError):
        kind(config)
    with pytest.raises(ModelError):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_scaling_that_was_set_afterwards_is_computed(small: Build):
    ids = torch.arange(3, 63)[None]
    plain, scaled = copy.deepcopy(small().config), copy.deepcopy(small().config)
    scaled.rope_parameters = {"type": "linear", "factor": 4, "rope_theta": 10000}
    outputs = []
    for config in (plain, scaled):
        torch.manual_seed(0)
        outputs.append(run(MiniCPMModel(config).eval(), ids))
    assert not torch.allclose(*outputs, atol=1e-3)
    assert MiniCPMModel(scaled).rotary_emb.factor == 4.0


# Outputs


@every_class
def test_a_tuple_holds_what_the_named_output_does(small: Build, kind: type):
    model = build(kind, small, output_hidden_states=True)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        named = model(IDS, output_attentions=True)
        plain = model(IDS, output_attentions=True, return_dict=False)
    assert isinstance(plain, tuple)
    assert len(plain) == len(named.to_tuple())
    assert torch.equal(first(plain), first(named))
    for a, b in zip(plain[-1], named.attentions):
        assert torch.equal(a, b)
    assert [tuple(h.shape) for h in named.hidden_states] == [(3, 9, 32)] * 3
    assert [tuple(a.shape) for a in named.attentions] == [(3, 4, 9, 9)] * 2
    for attention in named.attentions:
        assert torch.allclose(attention.sum(-1), torch.ones(3, 4, 9), atol=1e-5)


def test_the_last_hidden_state_is_the_normed_one(small: Build):
    model = build(MiniCPMModel, small)
    out = model(IDS, output_hidden_states=True)
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    assert torch.equal(out.hidden_states[0], model.embed_tokens(IDS))


@every_class
def test_embeddings_instead_of_ids_give_the_same(small: Build, kind: type):
    model = build(kind, small)
    embeddings = model.get_input_embeddings()(IDS)
    mask = torch.ones_like(IDS)
    found = run(model, inputs_embeds=embeddings, attention_mask=mask)
    assert torch.allclose(found, run(model, IDS, attention_mask=mask), atol=1e-6)


@every_class
def test_a_row_of_a_batch_equals_the_row_alone(small: Build, kind: type):
    model = build(kind, small)
    whole = run(model, IDS)
    for row in range(len(IDS)):
        assert torch.allclose(run(model, IDS[row : row + 1])[0], whole[row], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_sdpa_and_eager_attention_agree(small: Build, dtype: torch.dtype, padding: str):
    model = build(MiniCPMForCausalLM, small).to(dtype)
    mask = torch.ones_like(IDS)
    if padding != "none":
        mask[0, slice(0, 3) if padding == "left" else slice(6, 9)] = 0
    outputs = {}
    for name in ("sdpa", "eager"):
        model.set_attn_implementation(name)
        outputs[name] = run(model, IDS, attention_mask=mask)[mask.bool()]
    assert outputs["sdpa"].dtype is dtype
    assert outputs["sdpa"].isfinite().all()
    # Rounding of the attention's output in 8 or 11 bits, through two layers; logits are about 1.
    bound = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    assert (outputs["sdpa"] - outputs["eager"]).abs().max() < bound


@pytest.mark.slow
def test_a_compiled_model_is_one_graph_and_computes_the_same(small: Build):
    model = build(MiniCPMForCausalLM, small)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.allclose(run(compiled, IDS), run(model, IDS), atol=1e-6)


# The vocabulary


@every_class
@tied_or_not
def test_a_resized_vocabulary_is_saved_and_loaded(small: Build, tmp_path: Path, kind: type, tied: bool):
    model = build(kind, small, tie_word_embeddings=tied)
    before = run(model, IDS)
    model.resize_token_embeddings(101, pad_to_multiple_of=8)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 104
    after = run(model, IDS)
    assert torch.allclose(after[..., : before.shape[-1]], before, atol=1e-6)
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    assert torch.equal(run(again, IDS), after)
    again.resize_token_embeddings(97)
    assert torch.allclose(run(again, IDS), before, atol=1e-6)


@every_class
def test_embeddings_are_taken_out_and_put_back(small: Build, kind: type):
    model = build(kind, small)
    other = build(kind, small, initializer_range=0.3)
    model.set_input_embeddings(other.get_input_embeddings())
    assert model.get_input_embeddings() is other.get_input_embeddings()
    head = model.get_output_embeddings()
    assert (head is not None) is (kind is MiniCPMForCausalLM)
    if head is not None:
        model.set_output_embeddings(torch.nn.Linear(32, 97, bias=False))
        assert model.get_output_embeddings() is not head


# Training


def labels_of(kind: type) -> torch.Tensor:
    return torch.tensor([0, 2, 1]) if kind is MiniCPMForSequenceClassification else IDS


@pytest.mark.parametrize("kind", CLASSES[1:], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_every_parameter_learns_with_and_without_checkpointing(small: Build, kind: type, reentrant: bool | None):
    model = build(kind, small, tie_word_embeddings=False).train()
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        assert all(layer.gradient_checkpointing for layer in model.model.layers)
    model(IDS, labels=labels_of(kind)).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without
    model.gradient_checkpointing_disable()
    assert not any(layer.gradient_checkpointing for layer in model.model.layers)


def test_the_loss_is_that_of_the_next_token_and_takes_transformers_keywords(small: Build):
    model = build(MiniCPMForCausalLM, small)
    labels = IDS.clone()
    labels[0, :4] = -100
    logits = run(model, IDS)
    each = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    kept = int((labels[:, 1:] != -100).sum())
    assert torch.allclose(model(IDS, labels=labels).loss, each.sum() / kept)
    assert torch.allclose(model(IDS, labels=labels, num_items_in_batch=torch.tensor(100)).loss, each.sum() / 100)
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    assert torch.allclose(model(IDS, labels=labels, shift_labels=shifted).loss, each.sum() / kept)
    assert torch.allclose(model(IDS, labels=None, return_dict=False)[0], logits)


@pytest.mark.parametrize(
    ("problem", "labels"),
    [
        ("regression", torch.tensor([0.1, 0.2, 0.3])),
        ("single_label_classification", torch.tensor([0, 2, 1])),
        ("multi_label_classification", torch.eye(3)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_classifier_knows_the_three_kinds_of_problem(small: Build, problem: str, labels: torch.Tensor):
    model = build(
        MiniCPMForSequenceClassification, small, num_labels=1 if problem == "regression" else 3, problem_type=problem
    )
    loss = model(IDS, labels=labels).loss
    loss.backward()
    assert loss.isfinite()


def test_a_classifier_of_float_weights_takes_the_decoder_of_a_language_model(small: Build, tmp_path: Path):
    whole = build(MiniCPMForCausalLM, small)
    whole.save_pretrained(tmp_path)
    config = MiniCPMConfig.from_pretrained(tmp_path, num_labels=5)
    classifier, info = MiniCPMForSequenceClassification.from_pretrained(
        tmp_path, config=config, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"score.weight"}
    assert classifier.score.weight.shape == (5, 32)
    assert torch.equal(run(classifier.model, IDS), run(whole.model, IDS))
