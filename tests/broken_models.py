"""Sound models and what published files do to them: every known fault, made on purpose, by the name doctor gives it.

`nano_of_2024` is MiniCPM-nano with the constants of 2024's models, the same function to the last bit: its
dim_model_base is 4 times larger, the final norm's weight 4 times smaller.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from minicpm.doctor.diagnosis import Diagnosis
from minicpm.export.gguf import write_gguf
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.gguf import Field, GgufFile, GgufWriter, ValueType
from minicpm.formats.gguf_model import published_rows, rows_to_store, stored_name
from minicpm.hub import embedded
from minicpm.quant.format import IntWeight, read_weight
from minicpm.tokenizer import PieceType
from small_models import ONE_BLOCK

NORM = "model.norm.weight"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)

# Inputs for sound and broken models: texts to read and a question to answer.
TEXTS = (
    "Pip was a brave little owl who lived by a quiet river. Every summer the others swam in the lake, but Pip stayed "
    'on the sand. "I can teach you," said his friend Nala the otter. Pip went in up to his knees, and then he stopped. '
    'He was scared. "Just try a little every day," said Nala.',
    "<用户>讲个故事<AI>",
    "  two\n\nlines 12",
)
QUESTION = "What does a nurse do?"

Fields = dict[str, Field]


# Texts whose tokens a repaired tokenizer must give as before.
TOKENIZED_TEXTS = ("Tell me a story about a mouse.", "<用户>讲个故事<AI>", "  two\n\nlines 12")
# A small model with the constants of 2024.
CONFIG = replace(ONE_BLOCK, dim_model_base=256)


def names(diagnosis: Diagnosis) -> list[str]:
    return [fault.name for fault in diagnosis.faults]


# --- sound models ------------------------------------------------------------------------------------------------


def nano_gguf(folder: Path) -> Path:
    """`nano_of_2024` as a GGUF file in `folder`."""
    path = folder / "nano.gguf"
    write_gguf(nano_of_2024(folder / "nano"), path)
    return path


def sound_folder(golden: Path, destination: Path) -> Path:
    """The golden toy model without what doctor finds wrong with every folder of 2024."""
    shutil.copytree(golden / "minicpm2b_tied", destination)
    spoil(destination, "tokenizer_config.json", chat_template="{{ messages[0]['content'] }}")
    spoil(destination, auto_map=...)
    return destination


def nano_of_2024(destination: Path) -> Path:
    """INT4, as nano is."""
    shutil.copytree(embedded.folder(), destination)
    spoil(destination, dim_model_base=256)
    weights = load_file(destination / "model.safetensors")
    weights[NORM] = weights[NORM] * np.float32(0.25)
    save_file(weights, destination / "model.safetensors", metadata={"format": "pt"})
    return destination


def as_floats(source: Path, destination: Path) -> Path:
    """The same weights in float32, with tokenizer and configuration."""
    destination.mkdir()
    with open_checkpoint(source, allow_quantized=True) as checkpoint:
        weights = {name: floats(read_weight(checkpoint, name)) for name in checkpoint.config.parameter_shapes()}
        (destination / "config.json").write_text(json.dumps(checkpoint.config.to_dict()))
    save_file(weights, destination / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (source / name).exists():
            shutil.copy(source / name, destination)
    return destination


def floats(weight: object) -> np.ndarray:
    return weight.dequantize() if isinstance(weight, IntWeight) else weight.float32().copy()  # type: ignore[attr-defined]


def wide_nano(source: Path, destination: Path) -> Path:
    """A float folder of nano as the same function of twice the width, the other half of which is zero.

    llama.cpp's default of a missing logit_scale is right for a width of 256 and wrong for any other.
    """
    as_floats(source, destination)
    raw = json.loads((destination / "config.json").read_text())
    old, heads = raw["hidden_size"], raw["num_attention_heads"]
    weights = {}
    for name, weight in load_file(destination / "model.safetensors").items():
        is_square = name.endswith((".q_proj.weight", ".o_proj.weight"))
        rows = old if is_square or name.endswith(("down_proj.weight", "norm.weight")) else 0
        columns = 0 if weight.ndim == 1 or name.endswith("down_proj.weight") else old
        weights[name] = np.pad(weight, [(0, rows), (0, columns)][: weight.ndim])
        if weight.ndim == 1:
            weights[name] *= np.float32(2**-0.5)  # the mean square is of twice as many numbers
    weights[NORM] *= np.float32(2)
    save_file(weights, destination / "model.safetensors", metadata={"format": "pt"})
    eps = raw["rms_norm_eps"] / 2
    spoil(destination, hidden_size=2 * old, num_attention_heads=2 * heads, rms_norm_eps=eps)
    return destination


# --- changing files ----------------------------------------------------------------------------------------------


def rewritten(source: Path, destination: Path, change: Callable[[Fields], object], with_pairs: bool = True) -> Path:
    """A GGUF file whose metadata are changed; q and k are stored as published, not in pairs, if asked for."""
    file = GgufFile(source)
    fields = file.fields()
    change(fields)
    tensors = list(file.tensors.values())
    orders: dict[str, np.ndarray | None] = {}
    if not with_pairs:
        with open_checkpoint(source, allow_quantized=True) as checkpoint:
            config = checkpoint.config
        orders = {stored_name(name): published_rows(config, name) for name in config.parameter_shapes()}
    writer = GgufWriter(destination, list(fields.values()), tensors)
    for tensor in tensors:
        data, order = np.frombuffer(file.view(tensor.name), np.uint8), orders.get(tensor.name)
        if order is not None:
            data = data.reshape(len(order), -1)[order].reshape(-1)
        writer.write(tensor.name, [data.data])
    writer.close()
    file.close()
    return destination


def spoil(folder: Path, file: str = "config.json", **changes: object) -> None:
    """Change keys of a JSON file; a value of ... removes its key."""
    raw = {**json.loads((folder / file).read_text()), **changes}
    (folder / file).write_text(json.dumps({key: value for key, value in raw.items() if value is not ...}))


# --- faults of GGUF files ----------------------------------------------------------------------------------------


def _remove(*keys: str) -> Callable[[Fields], None]:
    def change(fields: Fields) -> None:
        for key in keys:
            del fields[key]

    return change


def _put(key: str, kind: ValueType, value: object) -> Callable[[Fields], None]:
    return lambda fields: fields.update({key: Field(key, kind, value)})  # type: ignore[arg-type]


def _flatten_scores(fields: Fields) -> None:
    scores = fields["tokenizer.ggml.scores"]
    fields[scores.key] = replace(scores, value=[-1000.0] * len(scores.value))  # type: ignore[arg-type]


def _end_at_a_full_stop(fields: Fields) -> None:
    pieces = [str(piece) for piece in fields["tokenizer.ggml.tokens"].value]  # type: ignore[union-attr]
    _put("tokenizer.ggml.eos_token_id", ValueType.UINT32, pieces.index("."))(fields)


def _byte_level(fields: Fields) -> None:
    """What a converter makes of tokenizer.json that takes it for GPT-2's: no scores, no types of SentencePiece."""
    pieces = [str(piece) for piece in fields["tokenizer.ggml.tokens"].value]  # type: ignore[union-attr]
    types = [int(kind) for kind in fields["tokenizer.ggml.token_type"].value]  # type: ignore[union-attr]
    kinds = [
        PieceType.CONTROL if kind == PieceType.UNKNOWN else PieceType.NORMAL if kind == PieceType.BYTE else kind
        for kind in types
    ]
    merges = [f"{piece[0]} {piece[1]}" for piece in pieces if len(piece) == 2]
    _put("tokenizer.ggml.model", ValueType.STRING, "gpt2")(fields)
    fields["tokenizer.ggml.token_type"] = replace(fields["tokenizer.ggml.token_type"], value=kinds)
    fields["tokenizer.ggml.merges"] = Field("tokenizer.ggml.merges", ValueType.ARRAY, merges, ValueType.STRING)
    del fields["tokenizer.ggml.scores"]


def _lose_scales(fields: Fields) -> None:
    """A MiniCPM that was taken for a Llama."""
    for key in [key for key in fields if key.startswith("minicpm.")]:
        field = fields.pop(key)
        if not key.endswith(("embedding_scale", "residual_scale", "logit_scale")):
            renamed = key.replace("minicpm.", "llama.")
            fields[renamed] = replace(field, key=renamed)
    _put("general.architecture", ValueType.STRING, "llama")(fields)


GGUF_FAULTS: dict[str, Callable[[Fields], object]] = {
    "missing-mup": _remove("minicpm.embedding_scale", "minicpm.residual_scale", "minicpm.logit_scale"),
    "flat-scores": _flatten_scores,
    "byte-level-tokenizer": _byte_level,
    "wrong-bos": _put("tokenizer.ggml.bos_token_id", ValueType.UINT32, 300),
    "wrong-eos": _end_at_a_full_stop,
    "no-bos": _put("tokenizer.ggml.add_bos_token", ValueType.BOOL, False),
    "adds-eos": _put("tokenizer.ggml.add_eos_token", ValueType.BOOL, True),
    "no-space-prefix": _put("tokenizer.ggml.add_space_prefix", ValueType.BOOL, False),
    "missing-rope-theta": _remove("minicpm.rope.freq_base"),
    "wrong-rope-theta": _put("minicpm.rope.freq_base", ValueType.FLOAT32, 1e6),
    "lost-scales": _lose_scales,
    "row-order": lambda fields: None,  # of tensors, not of metadata
    "missing-template": _remove("tokenizer.chat_template"),
    "wrong-template": _put("tokenizer.chat_template", ValueType.STRING, CHATML),
}


def broken_gguf(sound: Path, destination: Path, fault: str) -> Path:
    return rewritten(sound, destination, GGUF_FAULTS[fault], with_pairs=fault != "row-order")


# --- faults of folders -------------------------------------------------------------------------------------------


def _swap_rows(folder: Path) -> None:
    """q and k as llama.cpp stores them."""
    weights = load_file(folder / "model.safetensors")
    with open_checkpoint(folder) as checkpoint:
        config = checkpoint.config
    for name in weights:
        order = rows_to_store(config, name)
        if order is not None:
            weights[name] = weights[name][order]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _rebuilt_pipeline(folder: Path) -> None:
    """tokenizer.json as transformers 5 saves it after rebuilding it: blanks are marked before anything else."""
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["normalizer"] = None
    raw["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
    (folder / "tokenizer.json").write_text(json.dumps(raw))


def _stop_nowhere(folder: Path) -> None:
    spoil(folder, eos_token_id=300)
    spoil(folder, "generation_config.json", eos_token_id=300)


def _overflow(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.3.mlp.down_proj.weight"][0, 0] = np.inf
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _old_gptq(folder: Path) -> None:
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 128, "desc_act": False}))


FOLDER_FAULTS: dict[str, Callable[[Path], object]] = {
    "missing-model-type": lambda folder: spoil(folder, model_type=...),
    "remote-code": lambda folder: spoil(
        folder,
        auto_map={
            "AutoConfig": "configuration_minicpm.MiniCPMConfig",
            "AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM",
        },
    ),
    "missing-mup": lambda folder: spoil(folder, scale_emb=..., scale_depth=..., dim_model_base=...),
    "missing-rope-theta": lambda folder: spoil(folder, rope_theta=...),
    "wrong-rope-theta": lambda folder: spoil(folder, rope_theta=1e6),
    "wrong-tie": lambda folder: spoil(folder, tie_word_embeddings=False),
    "lost-scales": lambda folder: spoil(folder, model_type="llama", architectures=["LlamaForCausalLM"]),
    "row-order": _swap_rows,
    "not-finite": _overflow,
    "missing-template": lambda folder: spoil(folder, "tokenizer_config.json", chat_template=...),
    "wrong-template": lambda folder: spoil(folder, "tokenizer_config.json", chat_template=CHATML),
    "missing-tokenizer-json": lambda folder: (folder / "tokenizer.json").unlink(),
    "wrong-tokenizer-json": _rebuilt_pipeline,
    "no-bos": lambda folder: spoil(folder, "tokenizer_config.json", add_bos_token=False),
    "wrong-eos": _stop_nowhere,
    "unsaid-quantization": _old_gptq,
}
