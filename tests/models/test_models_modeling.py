"""The decoder's own behaviour: scalings, rotary embedding, padding, caches, and the roads others take through it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from transformers import AttentionInterface, AutoModelForSequenceClassification, Cache, StaticCache

from minicpm.models import MiniCPMConfig, MiniCPMForCausalLM, MiniCPMForSequenceClassification

Build = Callable[..., MiniCPMForCausalLM]
IDS = torch.randint(3, 97, (2, 12), generator=torch.Generator().manual_seed(1))
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}}


def logits(model: MiniCPMForCausalLM, *args: object, **kwargs: object) -> torch.Tensor:
    with torch.no_grad():
        return model(*args, **kwargs).logits


# Scalings


def test_residual_scale_follows_the_configured_depth_in_a_truncated_model(small: Build):
    model = small(num_hidden_layers=4)
    whole = model(IDS, output_hidden_states=True).hidden_states
    model.model.layers = model.model.layers[:2]
    truncated = model(IDS, output_hidden_states=True, use_cache=False).hidden_states
    assert model.model.layers[0].residual_scale == pytest.approx(1.4 / math.sqrt(4))
    assert torch.equal(truncated[1], whole[1])
    assert torch.allclose(truncated[2], model.model.norm(whole[2]))


def test_inputs_embeds_are_taken_as_already_scaled(small: Build):
    model = small()
    raw = torch.nn.functional.embedding(IDS, model.model.embed_tokens.weight)
    assert torch.allclose(logits(model, inputs_embeds=raw * 12), logits(model, IDS), atol=1e-6)
    assert not torch.allclose(logits(model, inputs_embeds=raw), logits(model, IDS), atol=1e-2)


@pytest.mark.parametrize("tied", [True, False])
def test_resizing_the_vocabulary_keeps_both_scales(small: Build, tied: bool):
    model = small(tie_word_embeddings=tied)
    before = logits(model, IDS)
    model.resize_token_embeddings(101)
    after = logits(model, IDS)
    assert after.shape[-1] == 101
    assert torch.allclose(after[..., :97], before, atol=1e-6)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_the_names_vllm_reads_are_there(small: Build):
    model = small()
    assert model.get_input_embeddings().embed_scale == 12
    assert model.config.logit_scale == 8 / 32
    assert model._supports_attention_backend
    assert "layers.*.self_attn.q_proj" in model.config.base_model_tp_plan
    assert set(model.config.base_model_pp_plan) == {"embed_tokens", "layers", "norm"}


# Rotary embedding


def test_half_precision_models_rotate_in_float32(small: Build):
    exact = small().model.rotary_emb(IDS)
    for half in (torch.float16, torch.bfloat16):
        cos, sin = small().to(half).model.rotary_emb(IDS)
        assert cos.dtype is torch.float32
        assert torch.equal(cos, exact[0])
        assert torch.equal(sin, exact[1])


def test_linear_scaling_divides_positions(small: Build):
    linear = small(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0})
    cos, _ = linear.model.rotary_emb(torch.tensor([[8]]))
    expected, _ = small().model.rotary_emb(torch.tensor([[2]]))
    assert torch.allclose(cos, expected)


def test_dynamic_scaling_follows_its_formula_above_the_trained_length(small: Build):
    model = small(**DYNAMIC).model
    base = 10000 * (4 * 100 / 64 - 3) ** (8 / 6)
    assert model.config.to_decoder_config().rope_base(100) == pytest.approx(base, rel=1e-12)
    cos, _ = model.rotary_emb(torch.arange(100)[None])
    angle = 50 / base ** (torch.arange(0, 8, 2) / 8)
    assert torch.allclose(cos[0, 50, :4], angle.cos(), atol=1e-5)


@pytest.mark.parametrize("factor", [1.1, 3.3, 4.0, 7.7])
def test_texts_of_one_base_have_the_same_angles_to_the_bit(small: Build, factor: float):
    model = small(**DYNAMIC | {"rope_parameters": DYNAMIC["rope_parameters"] | {"factor": factor}}).model
    config, positions = model.config.to_decoder_config(), torch.arange(60)[None]
    angles = {length: model.rotary_emb(positions, length)[0] for length in (1, 60, 63, 64, 65, 200)}
    bases = {length: config.rope_base(length) for length in angles}
    assert len(set(bases.values())) == 3
    for one in angles:
        for other in angles:
            assert torch.equal(angles[one], angles[other]) == (bases[one] == bases[other]), (one, other)


def test_a_short_prompt_after_a_long_one_gives_the_same_logits_as_before(small: Build):
    model = small(**DYNAMIC)
    before = logits(model, IDS)
    logits(model, torch.randint(3, 97, (1, 150)))
    assert torch.equal(logits(model, IDS), before)


def test_rows_of_different_length_keep_their_own_base(small: Build):
    model = small(**DYNAMIC)
    long, short = torch.randint(3, 97, (1, 90)), torch.randint(3, 97, (1, 10))
    ids = torch.cat([long, torch.cat([torch.zeros(1, 80, dtype=torch.long), short], dim=1)])
    mask = torch.ones_like(ids)
    mask[1, :80] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    together = logits(model, ids, attention_mask=mask, position_ids=positions)
    assert torch.allclose(together[0], logits(model, long)[0], atol=1e-5)
    assert torch.allclose(together[1, 80:], logits(model, short)[0], atol=1e-5)


def test_rope_length_may_differ_per_token_of_a_flattened_batch(small: Build):
    rope = small(**DYNAMIC).model.rotary_emb
    positions = torch.tensor([[5, 6, 5, 6]])
    cos, _ = rope(positions, torch.tensor([[10, 10, 200, 200]]))
    assert torch.equal(cos[:, :2], rope(positions[:, :2], 10)[0])
    assert torch.equal(cos[:, 2:], rope(positions[:, 2:], 200)[0])


def test_cached_generation_across_the_trained_length_equals_recomputation(small: Build):
    model = small(**DYNAMIC)
    prompt = torch.randint(3, 97, (1, 50))
    cached = model.generate(
        prompt, max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    anew = logits(model, cached.sequences, rope_length=90)[:, 49:-1]
    assert torch.allclose(torch.stack(cached.logits, dim=1), anew, atol=1e-4)


def test_precomputed_position_embeddings_are_used(small: Build):
    model = small()
    shifted = model.model.rotary_emb(torch.arange(12)[None] * 3)
    expected = logits(model, IDS, position_ids=torch.arange(12)[None] * 3)
    assert torch.equal(logits(model, IDS, position_embeddings=shifted), expected)


# Batches and caches


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_rows_equal_single_rows(small: Build, side: str, attention: str):
    model = small()
    model.set_attn_implementation(attention)
    lengths = (12, 7)
    ids, mask = torch.zeros_like(IDS), torch.zeros_like(IDS)
    spans = [slice(12 - n, 12) if side == "left" else slice(0, n) for n in lengths]
    for row, span in enumerate(spans):
        ids[row, span] = IDS[row, : lengths[row]]
        mask[row, span] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    batch = logits(model, ids, attention_mask=mask, position_ids=positions)
    for row, span in enumerate(spans):
        assert torch.allclose(batch[row, span], logits(model, IDS[row : row + 1, : lengths[row]])[0], atol=1e-5)


def test_left_padded_generation_equals_single_generation(small: Build):
    model = small()
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = torch.cat([torch.zeros(1, 5, dtype=torch.long), IDS[:1, :7]], dim=1)
    mask = (ids != 0).long()
    batch = model.generate(
        torch.cat([IDS[1:], ids]), attention_mask=torch.cat([mask.new_ones(1, 12), mask]), **settings
    )
    assert torch.equal(batch[0, 12:], model.generate(IDS[1:], **settings)[0, 12:])
    assert torch.equal(batch[1, 12:], model.generate(IDS[:1, :7], **settings)[0, 7:])


def test_decoding_one_by_one_equals_one_prefill(small: Build):
    model = small()
    whole = logits(model, IDS)
    cache, steps = None, []
    for t in range(IDS.shape[1]):
        with torch.no_grad():
            out = model(IDS[:, t : t + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    assert torch.allclose(torch.cat(steps, dim=1), whole, atol=1e-5)


def test_a_static_cache_generates_what_a_dynamic_one_does(small: Build):
    model = small()
    settings = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    dynamic = model.generate(IDS, **settings)
    static = model.generate(IDS, past_key_values=StaticCache(config=model.config, max_cache_len=32), **settings)
    assert torch.equal(static, dynamic)


@pytest.mark.parametrize(
    "kept", [3, torch.tensor([1, 5]), torch.tensor([[0], [11]]), torch.arange(24).reshape(2, 12) % 5 == 0], ids=str
)
def test_logits_to_keep_are_a_part_of_all_logits(small: Build, kept: int | torch.Tensor):
    model = small()
    whole = logits(model, IDS)
    if isinstance(kept, int):
        expected = whole[:, -kept:]
    elif kept.ndim == 1:
        expected = whole[:, kept]
    elif kept.dtype is torch.bool:
        expected = whole[kept]
    else:
        expected = torch.stack([whole[row, kept[row]] for row in range(2)])
    assert torch.allclose(logits(model, IDS, logits_to_keep=kept), expected, atol=1e-6)


class RowCache(Cache):
    """Two rows' keys and values, filed from one flattened batch, as our engine does it."""

    def __init__(self, lengths: list[int]):
        super().__init__(layers=[])
        self.lengths, self.rows = lengths, {}

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        new = zip(key_states.split(self.lengths, 2), value_states.split(self.lengths, 2))
        old = self.rows.get(layer_idx, [(key_states[:, :, :0], value_states[:, :, :0])] * len(self.lengths))
        self.rows[layer_idx] = [(torch.cat([a, k], 2), torch.cat([b, v], 2)) for (a, b), (k, v) in zip(old, new)]
        return key_states, value_states

    def get_seq_length(self, layer_idx=0):
        return 0


def attend_by_row(module, query, key, value, attention_mask, *, scaling, cache, **kwargs):
    assert attention_mask is None
    outputs = []
    for q, (k, v) in zip(query.split(cache.lengths, 2), cache.rows[module.layer_idx]):
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scaling, enable_gqa=True)
        outputs.append(attended)
    return torch.cat(outputs, 2).transpose(1, 2), None


def test_a_flattened_ragged_batch_with_its_own_cache_and_attention_equals_single_rows(small: Build):
    AttentionInterface.register("rows_for_test", attend_by_row)
    single = small(**DYNAMIC)
    model = small(**DYNAMIC)
    model.set_attn_implementation("rows_for_test")
    lengths = [9, 70]
    rows = [torch.randint(3, 97, (1, n)) for n in lengths]
    cache = RowCache(lengths)
    whole = logits(
        model,
        torch.cat(rows, dim=1),
        position_ids=torch.cat([torch.arange(n) for n in lengths])[None],
        rope_length=torch.tensor([20] * 9 + [80] * 70)[None],
        past_key_values=cache,
        cache=cache,
        logits_to_keep=torch.tensor([8, 78]),
    )
    expected = [logits(single, row, rope_length=n)[0, -1] for row, n in zip(rows, (20, 80))]
    assert torch.allclose(whole[0], torch.stack(expected), atol=1e-5)
    cache.lengths = [1, 1]
    step = logits(
        model, torch.tensor([[7, 8]]), position_ids=torch.tensor([[9, 70]]),
        rope_length=torch.tensor([[20, 80]]), past_key_values=cache, cache=cache,
    )  # fmt: skip
    longer = [torch.cat([rows[0], torch.tensor([[7]])], 1), torch.cat([rows[1], torch.tensor([[8]])], 1)]
    expected = [logits(single, row, rope_length=n)[0, -1] for row, n in zip(longer, (20, 80))]
    assert torch.allclose(step[0], torch.stack(expected), atol=1e-5)


def test_two_packed_sequences_do_not_see_each_other(small: Build):
    model = small()
    packed = logits(model, IDS.reshape(1, 24), position_ids=torch.arange(12).repeat(2)[None], use_cache=False)
    assert torch.allclose(packed.reshape(2, 12, -1), logits(model, IDS), atol=1e-5)


# Training


def test_gradient_checkpointing_changes_no_gradient(small: Build):
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = small().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(IDS, labels=IDS).loss.backward()
        return [p.grad for p in model.parameters()]

    for plain, checkpointed in zip(gradients(False), gradients(True)):
        assert torch.allclose(plain, checkpointed, atol=1e-7)


def test_hidden_states_and_attentions_are_recorded(small: Build):
    model = small()
    model.set_attn_implementation("eager")
    out = model(IDS, output_hidden_states=True, output_attentions=True)
    assert [tuple(h.shape) for h in out.hidden_states] == [(2, 12, 32)] * 3
    assert [tuple(a.shape) for a in out.attentions] == [(2, 4, 12, 12)] * 2


def test_exactly_one_of_ids_and_embeddings_is_needed(small: Build):
    with pytest.raises(ValueError, match="exactly one"):
        small()()
    with pytest.raises(ValueError, match="exactly one"):
        small()(IDS, inputs_embeds=torch.zeros(2, 12, 32))


# Classification


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_classifier_pools_at_the_last_token_that_is_not_padding(side: str, small: Build, tmp_path):
    torch.manual_seed(0)
    config = MiniCPMConfig(**small().config.to_dict() | {"pad_token_id": 0, "num_labels": 3, "id2label": None})
    model = MiniCPMForSequenceClassification(config).eval()
    short = IDS[1:, :7]
    pad = torch.zeros(1, 5, dtype=torch.long)
    padded = torch.cat([pad, short] if side == "left" else [short, pad], dim=1)
    ids = torch.cat([IDS[:1], padded])
    mask = (ids != 0).long()
    with torch.no_grad():
        both = model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        alone = model(short).logits
    assert both.shape == (2, 3)
    assert torch.allclose(both[1], alone[0], atol=1e-5)
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(again) is MiniCPMForSequenceClassification
    assert torch.equal(again.score.weight, model.score.weight)
