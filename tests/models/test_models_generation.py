"""`generate` in all its ways: what is chosen does not depend on how the cache, the batch or the search is organised."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache

from minicpm.models import MiniCPMForCausalLM

Build = Callable[..., MiniCPMForCausalLM]
IDS = torch.randint(3, 97, (2, 10), generator=torch.Generator().manual_seed(1))
LENGTH = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
# A prompt of 10 and 8 more pass the 12 trained positions.
DYNAMIC = {
    "max_position_embeddings": 12,
    "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
}
every_rope = pytest.mark.parametrize("changes", [{}, DYNAMIC], ids=["default", "dynamic"])


def small_head(small: Build, **changes: Any) -> MiniCPMForCausalLM:
    """A model whose logits lie far apart, so that no rounding decides a choice."""
    return small(initializer_range=0.5, **changes)


@every_rope
@pytest.mark.parametrize(
    "cache",
    [
        {"use_cache": False},
        {"cache_implementation": "dynamic"},
        {"cache_implementation": "static", "disable_compile": True},
    ],
    ids=lambda cache: str(next(iter(cache.values()))),
)
def test_no_cache_changes_a_choice(small: Build, changes: dict[str, Any], cache: dict[str, Any]):
    model = small_head(small, **changes)
    assert torch.equal(model.generate(IDS, **LENGTH, **cache), model.generate(IDS, **LENGTH))


@every_rope
def test_a_padded_row_continues_as_the_row_alone(small: Build, changes: dict[str, Any]):
    model = small_head(small, **changes)
    ids = torch.cat([torch.zeros(1, 6, dtype=torch.long), IDS[:1, :4]], dim=1)
    mask = torch.cat([torch.ones(1, 10), (ids != 0).float()]).long()
    both = model.generate(torch.cat([IDS[1:], ids]), attention_mask=mask, **LENGTH)
    assert torch.equal(both[0], model.generate(IDS[1:], **LENGTH)[0])
    assert torch.equal(both[1, 10:], model.generate(IDS[:1, :4], **LENGTH)[0, 4:])


@every_rope
def test_embeddings_continue_as_their_ids(small: Build, changes: dict[str, Any]):
    model = small_head(small, **changes)
    embeddings = model.get_input_embeddings()(IDS)
    found = model.generate(inputs_embeds=embeddings, **LENGTH)
    assert torch.equal(found, model.generate(IDS, **LENGTH)[:, 10:])


@every_rope
def test_a_beam_for_every_token_finds_the_most_probable_text(small: Build, changes: dict[str, Any]):
    model = small_head(small, **changes)
    prompt = torch.cat([IDS, IDS], dim=1)[:1, :13]
    length = {"rope_length": 15} if changes else {}
    with torch.no_grad():
        first = model(prompt, **length).logits[0, -1].log_softmax(-1)  # (97,)
        texts = torch.cat([prompt.repeat(97, 1), torch.arange(97)[:, None]], dim=1)
        both = first[:, None] + model(texts, **length).logits[:, -1].log_softmax(-1)  # (97, 97)
    settings = LENGTH | {"max_new_tokens": 2, "length_penalty": 0.0}
    found = model.generate(prompt, num_beams=97, return_dict_in_generate=True, output_scores=True, **settings)
    assert found.sequences[0, 13:].tolist() == list(divmod(int(both.argmax()), 97))
    assert torch.allclose(found.sequences_scores, both.max(), atol=1e-4)
    assert torch.equal(model.generate(prompt, num_beams=1, **settings)[0, 13], first.argmax())


@every_rope
def test_guessed_tokens_change_no_choice(small: Build, changes: dict[str, Any]):
    model = small_head(small, **changes)
    prompt = IDS[:1].repeat(1, 2)[:, :14]  # repeats itself, so that lookup has something to find
    expected = model.generate(prompt, **LENGTH)
    assert torch.equal(model.generate(prompt, prompt_lookup_num_tokens=3, **LENGTH), expected)
    assert torch.equal(model.generate(prompt, assistant_model=copy.deepcopy(model), **LENGTH), expected)
    assert torch.equal(model.generate(prompt, assistant_early_exit=1, **LENGTH), expected)
    assert model.config.num_hidden_layers == 2


@every_rope
def test_an_assistant_may_be_of_another_family(small: Build, changes: dict[str, Any]):
    model = small_head(small, **changes)
    torch.manual_seed(1)
    other = LlamaForCausalLM(
        LlamaConfig(vocab_size=97, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    assert torch.equal(model.generate(IDS[:1], assistant_model=other, **LENGTH), model.generate(IDS[:1], **LENGTH))


def test_early_exit_runs_the_first_layers_alone(small: Build):
    model = small_head(small)
    with torch.no_grad():
        whole = model.model(IDS, output_hidden_states=True, use_cache=False)
        model.config.num_hidden_layers = 1
        early = model.model(IDS, use_cache=False).last_hidden_state
    assert torch.allclose(early, model.model.norm(whole.hidden_states[1]), atol=1e-5)


def test_a_text_goes_on_from_its_cache(small: Build):
    model = small_head(small)
    expected = model.generate(IDS, **LENGTH)
    first = model.generate(IDS, **LENGTH | {"max_new_tokens": 3}, return_dict_in_generate=True)
    rest = model.generate(first.sequences, past_key_values=first.past_key_values, **LENGTH | {"max_new_tokens": 5})
    assert torch.equal(rest, expected)


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_a_prompt_in_chunks_gives_the_logits_of_the_whole(small: Build, kind: type):
    model = small_head(small)
    cache = kind(config=model.config, **({"max_cache_len": 16} if kind is StaticCache else {}))
    parts = []
    with torch.no_grad():
        whole = model(IDS).logits
        for part in IDS.split([3, 1, 6], dim=1):
            parts.append(model(part, past_key_values=cache, use_cache=True).logits)
    assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-4)


def test_a_sampled_text_depends_on_the_seed_alone(small: Build):
    model = small()
    settings = LENGTH | {"do_sample": True, "num_return_sequences": 3, "top_p": 0.9}
    texts = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        texts.append(model.generate(IDS, **settings))
    assert texts[0].shape == (6, 18)
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


def test_everything_that_generate_can_return_has_its_shape(small: Build):
    model = small()
    model.set_attn_implementation("eager")
    out = model.generate(
        IDS, **LENGTH, return_dict_in_generate=True, output_scores=True, output_logits=True,
        output_attentions=True, output_hidden_states=True,
    )  # fmt: skip
    assert len(out.scores) == len(out.logits) == len(out.attentions) == len(out.hidden_states) == 8
    assert [tuple(h.shape) for h in out.hidden_states[0]] == [(2, 10, 32)] * 3
    assert [tuple(h.shape) for h in out.hidden_states[7]] == [(2, 1, 32)] * 3
    assert [tuple(a.shape) for a in out.attentions[7]] == [(2, 4, 1, 17)] * 2
    assert out.past_key_values.get_seq_length() == 17


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_generates_finite_scores(small: Build, dtype: torch.dtype):
    model = small().to(dtype)
    out = model.generate(IDS, **LENGTH, return_dict_in_generate=True, output_logits=True)
    assert out.sequences.shape == (2, 18)
    assert torch.stack(out.logits).isfinite().all()


def test_generation_without_a_prompt_begins_with_bos(small: Build):
    out = small().generate(**LENGTH)
    assert out.shape == (1, 9)
    assert out[0, 0] == 1
