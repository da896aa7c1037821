"""`minicpm info`: shows a model's configuration, files and memory needs.

Reads headers only, never the weights. Of a model that is on a hub only, it reads config.json and the list of files.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from minicpm import hub
from minicpm.cli.arguments import BUILT_IN, add_model_argument
from minicpm.cli.output import printable
from minicpm.cli.progress import format_bytes
from minicpm.engine.backend import CACHE_BYTES, cache_bytes_per_token
from minicpm.errors import FormatError, HubError, ModelError, counted, one_line
from minicpm.export.hf_folder import is_licence
from minicpm.files import read_text
from minicpm.formats.checkpoint import FORMS, Checkpoint, open_checkpoint, recognise
from minicpm.formats.config import DecoderConfig
from minicpm.formats.llama import EMBEDDING, HEAD
from minicpm.formats.support import require_supported
from minicpm.formats.text_sources import TOKENIZER_FILES
from minicpm.hub import licences
from minicpm.hub.previews import Preview
from minicpm.quant.format import PRESETS, Preset

# (hidden_size, num_hidden_layers) of the text models of 2024, whatever their folder is called: 2B and 1B.
RELEASE_SHAPES = {(2304, 40), (1536, 52)}
MAX_CARD_BYTES = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser, default=BUILT_IN)
    parser.add_argument("--tensors", action="store_true", help="also list every tensor")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    path = hub.find(args.model)
    if path is None:
        if args.tensors:
            raise ModelError(f"{args.model} is not on this machine; download it first: minicpm pull {args.model}")
        facts = describe_preview(hub.preview(args.model, offline=args.offline))
    else:
        with open_checkpoint(path, allow_quantized=True) as checkpoint:
            facts = describe(checkpoint)
            facts |= _terms(checkpoint.config, path)
            if args.tensors:
                facts["tensors"] = [
                    {"name": info.name, "dtype": info.dtype, "shape": list(info.shape)}
                    for info in checkpoint.tensors.values()
                ]
    print(json.dumps(facts, indent=2) if args.json else printable("\n".join(_lines(facts))))
    return 0


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything that `info` shows of a model's files, as plain JSON values; sizes in bytes."""
    kept = checkpoint.folded_scales
    return {
        "path": str(checkpoint.path),
        "family": "MiniCPM decoder",
        "format": checkpoint.format,
        "dtypes": sorted({info.dtype for info in checkpoint.tensors.values()}),
        "quantization": quantization(checkpoint),
        "quantization_cost": quantization_cost(checkpoint),
        "weight_bytes": checkpoint.nbytes,
        "weight_files": [file.name for file in checkpoint.weight_files],
        "is_local": True,
        **_shape(checkpoint.config),
        "folded_scales": None
        if kept is None
        else {"scale_emb": kept.scale_emb, "scale_depth": kept.scale_depth, "dim_model_base": kept.dim_model_base},
        "tokenizer_files": [file.name for file in checkpoint.tokenizer_files],
        "has_chat_template": checkpoint.has_chat_template,
        "licence_files": _licence_files(checkpoint.path),
    }


def describe_preview(preview: Preview) -> dict[str, Any]:
    """The same of a model that is on a hub only, from its config.json and its list of files.

    Raises ModelError for a model that this version cannot run.
    """
    require_supported(preview)
    raw = preview.config
    if raw is None:
        raise HubError(
            f"{preview.reference} has no config.json, so only its weights say what it is; they are "
            f"{format_bytes(preview.weight_bytes)}: minicpm pull {preview.reference}"
        )
    form = recognise(raw)
    config = FORMS[form].read_config(raw)
    names = [file.path for file in preview.listing.files]
    return {
        "path": str(preview.reference),
        "family": "MiniCPM decoder",
        "format": form,
        "dtypes": [config.dtype],
        "quantization": {},
        "quantization_cost": None,
        "weight_bytes": preview.weight_bytes,
        "weight_files": [file.path for file in preview.weight_files],
        "is_local": False,
        **_shape(config),
        "folded_scales": None,
        "tokenizer_files": [name for name in TOKENIZER_FILES if name in names],
        "has_chat_template": None,
        "licence_files": sorted(name for name in names if "/" not in name and is_licence(name)),
        **_terms(config, None),
    }


def _shape(config: DecoderConfig) -> dict[str, Any]:
    embedding = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    return {
        "parameters": config.num_parameters(),
        "parameters_without_embeddings": config.num_parameters() - embedding,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "attention_heads": config.num_attention_heads,
        "key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "context": config.context_length,
        "trained_context": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.to_dict()["rope_scaling"],
        "scale_emb": config.scale_emb,
        "scale_depth": config.scale_depth,
        "dim_model_base": config.dim_model_base,
        "residual_scale": config.residual_scale,
        "logit_scale": config.logit_scale,
        "tied_head": config.tie_word_embeddings,
        "memory_bytes": weight_memory(config),
        "cache_bytes_per_token": {dtype: cache_bytes_per_token(config, dtype) for dtype in (*CACHE_BYTES, "int8")},
    }


def _terms(config: DecoderConfig, path: Path | None) -> dict[str, Any]:
    """The licence and the limits of a model's weights, as its files and its publishers state them."""
    is_of_release = (config.hidden_size, config.num_hidden_layers) in RELEASE_SHAPES
    licence = _licence_of_card(path)
    if is_of_release and licence is None:
        licence = f"{licences.GML_NAME}: {licences.TERMS}; {licences.GML_URL}"
    return {"licence": licence, "limitations": list(licences.LIMITATIONS) if is_of_release else []}


def _licence_of_card(path: Path | None) -> str | None:
    """The licence that a folder's model card names, as hubs read it; None where it names none."""
    card = path / "README.md" if path is not None and path.is_dir() else None
    if card is None or not card.is_file():
        return None
    try:
        header = re.match(r"---\n(.*?)\n---", read_text(card, MAX_CARD_BYTES), re.DOTALL)
    except FormatError:
        return None
    named = re.search(r"^license(?:_name)?:[ \t]*(\S.*)$", header[1], re.MULTILINE) if header else None
    return f"{one_line(named[1], 60)}, as its README.md says" if named and named[1] != "other" else None


def _licence_files(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir() if is_licence(file.name)) if path.is_dir() else []


def quantization(checkpoint: Checkpoint) -> dict[str, int]:
    """The number of weights of each packing; empty for a model that is not quantized."""
    counts = Counter(checkpoint.packings.values())
    return {f"{packing.bits} bits by {packing.group_size}": count for packing, count in sorted(counts.items())}


def quantization_cost(checkpoint: Checkpoint) -> str | None:
    """What the preset costs that all weights are packed by; None for others and for a preset without a warning."""
    for preset in PRESETS.values():
        packings = {preset.linear, preset.outer}
        is_whole = EMBEDDING in checkpoint.packings and preset.outer is not None
        if preset.cost and is_whole and set(checkpoint.packings.values()) == packings:
            return preset.cost
    return None


def weight_memory(config: DecoderConfig) -> dict[str, int]:
    """Calculated bytes of the weights in each number format; int4 keeps embedding and head in 8 bits."""
    matrices = outer = vectors = 0
    for name, shape in config.parameter_shapes().items():
        count = shape[0] * (shape[1] if len(shape) == 2 else 1)
        if name in (EMBEDDING, HEAD):
            outer += count
        elif len(shape) == 2:
            matrices += count
        else:
            vectors += count
    total = matrices + outer + vectors
    return {
        "float32": 4 * total,
        "bfloat16": 2 * total,
        "float16": 2 * total,
        **{name: _quantized_bytes(PRESETS[name], matrices, outer) + 2 * vectors for name in ("int8", "int4")},
    }


def _quantized_bytes(preset: Preset, matrices: int, outer: int) -> int:
    """Bytes of the blocks' matrices and of embedding and head, with a float16 scale per group."""
    assert preset.outer is not None  # 16 bits: not of these presets
    parts = ((matrices, preset.linear), (outer, preset.outer))
    return round(sum(count * (packing.bits / 8 + 2 / packing.group_size) for count, packing in parts))


def _lines(facts: dict[str, Any]) -> list[str]:
    rows = [
        ("model", facts["path"]),
        ("family", f"{facts['family']}, {facts['format']} format, {' and '.join(facts['dtypes'])}"),
        (
            "parameters",
            f"{facts['parameters']:,} ({facts['parameters_without_embeddings']:,} without embeddings), "
            f"{'tied' if facts['tied_head'] else 'untied'} head",
        ),
        ("weights", f"{format_bytes(facts['weight_bytes'])} in {_listed(facts['weight_files'])}{_where(facts)}"),
        ("quantized", _quantized(facts["quantization"]) or "no"),
        *([("cost", facts["quantization_cost"])] if facts["quantization_cost"] else []),
        (
            "shape",
            f"{counted(facts['layers'], 'layer')}, hidden {facts['hidden_size']}, "
            f"feed-forward {facts['intermediate_size']}, {counted(facts['attention_heads'], 'head')} of "
            f"{facts['head_dim']}, {facts['key_value_heads']} for keys and values, "
            f"vocabulary {facts['vocab_size']:,}",
        ),
        ("context", f"{facts['context']:,} tokens{_trained(facts)}"),
        ("rope", f"theta {facts['rope_theta']:g}, {_scaling(facts['rope_scaling'])}"),
        ("scales", _scales(facts)),
        ("tokenizer", _listed(facts["tokenizer_files"]) or "none found; chat and run need one"),
        ("template", _TEMPLATE[facts["has_chat_template"]]),
        ("licence", _licence(facts)),
        *([("limits", "; ".join(facts["limitations"]))] if facts["limitations"] else []),
        ("memory", ", ".join(f"{name} {format_bytes(size)}" for name, size in facts["memory_bytes"].items())),
        (
            "cache",
            ", ".join(f"{name} {format_bytes(size)}" for name, size in facts["cache_bytes_per_token"].items())
            + " per token",
        ),
    ]
    width = max(len(label) for label, _ in rows)
    lines = [f"{label.ljust(width)}  {text}" for label, text in rows]
    for tensor in facts.get("tensors", []):
        lines.append(f"{tensor['name']}  {tensor['dtype']}  {'x'.join(map(str, tensor['shape']))}")
    return lines


def _quantized(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {'weight' if count == 1 else 'weights'} in {kind}" for kind, count in counts.items())


_TEMPLATE = {
    True: "its own",
    False: "none of its own; the built-in one is used",
    None: "its own, if tokenizer_config.json has one; else the built-in one is used",
}


def _where(facts: dict[str, Any]) -> str:
    return "" if facts["is_local"] else f", not on this machine: minicpm pull {facts['path']}"


def _licence(facts: dict[str, Any]) -> str:
    files, stated = _listed(facts["licence_files"]), facts["licence"]
    return "; ".join(filter(None, [files, stated])) or "no file here; the weights' own terms are on the model's page"


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{len(names)} files, {names[0]} to {names[-1]}"


def _trained(facts: dict[str, Any]) -> str:
    return "" if facts["context"] == facts["trained_context"] else f" ({facts['trained_context']:,} trained)"


def _scaling(scaling: dict[str, Any] | None) -> str:
    return "no scaling" if scaling is None else f"{scaling['type']} scaling by {scaling['factor']:g}"


def _scales(facts: dict[str, Any]) -> str:
    kept = facts["folded_scales"]
    if kept is not None:
        constants = ", ".join(f"{name} {value:g}" for name, value in kept.items())
        return f"multiplied into the weights ({constants})"
    return (
        f"scale_emb {facts['scale_emb']:g}, "
        f"scale_depth {facts['scale_depth']:g} (branches x {facts['residual_scale']:.6g}), "
        f"dim_model_base {facts['dim_model_base']} (logits x {facts['logit_scale']:.6g})"
    )
