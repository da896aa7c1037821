"""muP by its formulae, and learning rates over the steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from minicpm.models import MiniCPMConfig, MiniCPMForCausalLM
from minicpm.train.optimizers import initialize, make_optimizers, parameter_groups, set_learning_rate
from minicpm.train.options import OptimizerOptions
from minicpm.train.schedules import Schedule


def model_of(**changes: Any) -> MiniCPMForCausalLM:
    shape = {"vocab_size": 300, "hidden_size": 288, "intermediate_size": 64, "num_hidden_layers": 2}
    return MiniCPMForCausalLM(MiniCPMConfig(**shape | {"num_attention_heads": 8, "dim_model_base": 32} | changes))


def names(model: MiniCPMForCausalLM, group: dict[str, Any]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if any(parameter is p for p in group["params"])}


def test_matrices_train_at_a_ninth_as_in_minicpm_2b():
    model = model_of()  # 288 / 32 = 2304 / 256 = 9
    groups = parameter_groups(model, OptimizerOptions(lr=0.01, weight_decay=0.1))
    assert groups["matrices"]["lr"] == pytest.approx(0.01 / 9)
    assert groups["embedding"]["lr"] == groups["vectors"]["lr"] == 0.01
    assert [groups[kind]["weight_decay"] for kind in ("matrices", "embedding", "vectors")] == [0.1, 0.1, 0.0]


def test_every_parameter_is_in_exactly_one_group():
    model = model_of()
    groups = parameter_groups(model, OptimizerOptions())
    assert names(model, groups["embedding"]) == {"model.embed_tokens.weight"}
    assert all("norm" in name for name in names(model, groups["vectors"]))
    listed = [parameter for group in groups.values() for parameter in group["params"]]
    assert len(listed) == len(list(model.parameters())) == len({id(parameter) for parameter in listed})


def test_an_untied_head_is_a_matrix():
    model = model_of(tie_word_embeddings=False)
    assert "lm_head.weight" in names(model, parameter_groups(model, OptimizerOptions())["matrices"])


@pytest.mark.parametrize(
    "options, matrices, embedding",
    [
        (OptimizerOptions(lr=0.9, is_mup=False), 0.9, 0.9),
        (OptimizerOptions(lr=0.9, scales_embedding=True), 0.1, 0.1),
    ],
)
def test_mup_can_be_left_out_or_read_to_the_letter(options: OptimizerOptions, matrices: float, embedding: float):
    groups = parameter_groups(model_of(), options)
    assert groups["matrices"]["lr"] == pytest.approx(matrices)
    assert groups["embedding"]["lr"] == pytest.approx(embedding)


def test_new_weights_have_mup_s_deviation():
    model = model_of()
    initialize(model, seed=0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            assert parameter.std().item() == pytest.approx(0.1 / 3, rel=0.05), name
        else:
            assert (parameter == 1).all()


def test_new_weights_depend_on_the_seed_alone():
    one, same, other = model_of(), model_of(), model_of()
    for model, seed in ((one, 7), (same, 7), (other, 8)):
        initialize(model, seed)
    weights = [model.model.layers[1].mlp.down_proj.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_muon_takes_the_matrices_and_adamw_the_rest():
    model = model_of()
    muon, adamw = make_optimizers(model, OptimizerOptions(name="muon"))
    set_learning_rate([muon, adamw], 0.5)
    assert type(muon).__name__ == "Muon" and len(muon.param_groups[0]["params"]) == 14
    assert muon.param_groups[0]["lr"] == pytest.approx(0.01 / 9 / 2)
    assert [group["lr"] for group in adamw.param_groups] == [0.005, 0.005]


def test_wsd_warms_up_stays_and_halves_five_times():
    schedule = Schedule("wsd", last_step=100, warmup_steps=10, decay_steps=20)
    factors = [schedule.factor(step) for step in range(101)]
    assert factors[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert set(factors[10:81]) == {1.0}
    assert factors[84] == pytest.approx(0.5) and factors[88] == pytest.approx(0.25)  # a halving every 20 / 5 steps
    assert factors[100] == pytest.approx(0.5**5)


def test_a_branch_decays_from_where_it_leaves_the_stable_run():
    stable, branch = Schedule("wsd", 1000, 10), Schedule("wsd", 500 + 50, 10, 50)
    assert branch.factor(499) == stable.factor(499) == branch.factor(500) == 1.0
    assert branch.factor(510) == pytest.approx(0.5)


def test_cosine_ends_at_a_tenth_and_constant_stays():
    cosine = Schedule("cosine", last_step=110, warmup_steps=10)
    assert cosine.factor(10) == 1.0 and cosine.factor(110) == pytest.approx(0.1)
    assert cosine.factor(60) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert Schedule("constant", 10).factor(9) == 1.0


@pytest.mark.parametrize("wrong", [{"name": "linear"}, {"decay_steps": 2000}, {"name": "cosine", "decay_steps": 1}])
def test_impossible_schedules_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError):
        Schedule(**wrong)


def test_muon_decays_the_matrices_by_their_rate_and_leaves_the_norms():
    model = model_of()
    initialize(model, seed=0)
    options = OptimizerOptions(name="muon", lr=0.01, weight_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in make_optimizers(model, options):
        optimizer.step()
    for name, parameter in model.named_parameters():
        rate = 0.01 if name == "model.embed_tokens.weight" else 0.01 / 9
        factor = 1 - rate * 0.5 if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)
