"""The decoder among its neighbours: Granite as an oracle, PEFT, TRL, torch.compile."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GraniteForCausalLM

from minicpm.models import MiniCPMConfig, MiniCPMForCausalLM

pytestmark = pytest.mark.parity
torch.set_num_threads(1)

IDS = torch.randint(3, 1000, (2, 40), generator=torch.Generator().manual_seed(0))
FOLDERS = ("minicpm2b_tied", "minicpm2b_untied_sharded")


def load(folder: Path) -> MiniCPMForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def logits(model: torch.nn.Module, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, **kwargs).logits


# Granite


@pytest.mark.parametrize("name", FOLDERS)
def test_granite_with_the_mup_scalings_as_multipliers_is_the_same_model(golden: Path, tmp_path: Path, name: str):
    """The four multipliers are computed here anew, so that a mistake in ours cannot hide."""
    raw = json.loads((golden / name / "config.json").read_text(encoding="utf-8"))
    head_dim = raw["hidden_size"] // raw["num_attention_heads"]
    shutil.copytree(golden / name, tmp_path, dirs_exist_ok=True)
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta")  # fmt: skip
    granite = {key: raw[key] for key in kept} | {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "tie_word_embeddings": raw.get("tie_word_embeddings", True),
        "embedding_multiplier": raw["scale_emb"],
        "residual_multiplier": raw["scale_depth"] / math.sqrt(raw["num_hidden_layers"]),
        "attention_multiplier": head_dim**-0.5,
        "logits_scaling": raw["hidden_size"] / raw["dim_model_base"],
    }
    (tmp_path / "config.json").write_text(json.dumps(granite), encoding="utf-8")
    oracle, info = GraniteForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    ours = load(golden / name)
    assert (logits(ours) - logits(oracle)).abs().max() <= 5e-5
    settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(ours.generate(IDS[:1, :8], **settings), oracle.generate(IDS[:1, :8], **settings))


# torch.compile


@pytest.mark.parametrize("rope", [{}, {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}], ids=str)
def test_a_compiled_model_without_graph_breaks_gives_the_same_logits(rope: dict[str, Any]):
    torch.manual_seed(0)
    config = MiniCPMConfig(
        vocab_size=1000, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, scale_emb=12, scale_depth=1.4, dim_model_base=8,
        **({"rope_parameters": rope} if rope else {}),
    )  # fmt: skip
    model = MiniCPMForCausalLM(config).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(logits(compiled, use_cache=False), logits(model, use_cache=False), atol=1e-5)


# PEFT


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["embed_tokens", "q_proj"]], ids=str)
def test_a_lora_adapter_trains_and_merges(golden: Path, tmp_path: Path, targets: str | list[str]):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = load(golden / "minicpm2b_untied_sharded")
    base.gradient_checkpointing_enable()
    before = logits(base)
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=4, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
    )
    assert torch.allclose(logits(model), before, atol=1e-6)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    model.train()
    for _ in range(4):
        loss = model(IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = logits(model.eval())
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(golden / "minicpm2b_untied_sharded"), tmp_path / "adapter")
    assert torch.allclose(logits(again.eval()), trained, atol=1e-5)
    merged = model.merge_and_unload()
    assert type(merged) is MiniCPMForCausalLM
    assert torch.allclose(logits(merged), trained, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(load(tmp_path / "merged")), trained, atol=1e-4)


def test_the_release_lora_settings_make_2949120_parameters():
    """finetune.py of 2024: r=8 on q_proj and v_proj of MiniCPM-2B."""
    peft = pytest.importorskip("peft")
    config = MiniCPMConfig(
        vocab_size=100, hidden_size=2304, intermediate_size=16, num_hidden_layers=40, num_attention_heads=36
    )
    with torch.device("meta"):
        model = MiniCPMForCausalLM(config)
        settings = peft.LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(model, settings)
    assert adapted.get_nb_trainable_parameters()[0] == 2_949_120


# TRL


def test_a_few_steps_of_trls_sft_lower_the_loss(golden: Path, tmp_path: Path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    folder = golden / "minicpm2b_tied"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    texts = ["<用户>Which mountain is higher?<AI>Mount Huang, by 331 metres.</s>", "<用户>你好<AI>你好！</s>"] * 4
    trainer = trl.SFTTrainer(
        model=load(folder),
        args=trl.SFTConfig(
            output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=2, learning_rate=1e-3, logging_steps=1,
            report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, max_length=64,
        ),
        train_dataset=datasets.Dataset.from_dict({"text": texts}),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    trainer.save_model(str(tmp_path / "saved"))
    assert type(load(tmp_path / "saved")) is MiniCPMForCausalLM


# bitsandbytes, vLLM's transformers backend and others look the model over like this.


def test_the_transformers_backends_of_others_find_what_they_ask_for(golden: Path):
    model = load(golden / "minicpm2b_tied")
    assert model.is_backend_compatible()
    assert model._supports_sdpa
    assert model._supports_flash_attn
    assert list(model._no_split_modules) == ["MiniCPMDecoderLayer"]
    plan = model.config.base_model_tp_plan
    names = {f"layers.*.{name.split('.', 2)[2]}" for name, m in model.model.named_modules() if "proj" in name and m}
    assert set(plan) - {"embed_tokens"} == names  # transformers 5.19 splits the embedding too
