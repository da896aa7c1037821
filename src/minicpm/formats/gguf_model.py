"""A MiniCPM in a GGUF file: maps llama.cpp's metadata keys and tensor names to ours.

Two things differ besides names. llama.cpp rotates neighbouring channels of a head, the published weights its halves, so
the rows of q and k are stored in another order. The muP constants are metadata keys. Files without them (early 2024,
when the runtime had MiniCPM-2B's built in) are refused, because today's llama.cpp runs them with wrong constants.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minicpm.chat import ChatTemplate
from minicpm.errors import FormatError, ModelError, brief
from minicpm.formats import gguf_tokenizer, llama
from minicpm.formats.compressed_tensors import SCALE, SHAPE, Packing
from minicpm.formats.config import DecoderConfig, RopeScaling
from minicpm.formats.generation import GGUF_KEYS
from minicpm.formats.gguf import BF16, F16, F32, Q6_K, Array, Field, GgufFile, GgufTensor, ValueType
from minicpm.formats.gguf_blocks import PACKINGS, by_rows, packed_codes, scales_of
from minicpm.formats.gguf_widening import INT8_PACKING, int8_of, widen
from minicpm.formats.granite import scale_depth_of, simple
from minicpm.formats.llama import EMBEDDING, HEAD
from minicpm.formats.mapped import aligned_view
from minicpm.formats.tensor import TensorInfo, TensorView
from minicpm.tokenizer import Tokenizer

_Int8 = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]

ARCHITECTURE, LLAMA = "minicpm", "llama"
FLOAT_TYPES = {"float32": F32, "float16": F16, "bfloat16": BF16}
FLOAT_DTYPES = {kind.id: dtype for dtype, kind in FLOAT_TYPES.items()}
SCALE_KEYS = ("embedding_scale", "residual_scale", "logit_scale")
# Our own key: llama.cpp has no dynamic NTK. It ignores the key and is right up to the trained length.
DYNAMIC_NTK_KEY = "rope.scaling.dynamic_ntk_factor"

_OUTER = {EMBEDDING: "token_embd", "model.norm.weight": "output_norm", HEAD: "output"}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def stored_name(name: str) -> str:
    """GGUF's name of a published tensor."""
    if name in _OUTER:
        return f"{_OUTER[name]}.weight"
    _, _, index, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{index}.{_IN_LAYER[part]}.weight"


def rows_to_store(config: DecoderConfig, name: str) -> npt.NDArray[np.int64] | None:
    """For q and k, the published row of each stored row; None for a tensor that is stored unchanged."""
    heads = _rotated_heads(config, name)
    if heads is None:
        return None
    return np.arange(heads * config.head_dim).reshape(heads, 2, -1).swapaxes(1, 2).ravel()


def published_rows(config: DecoderConfig, name: str) -> npt.NDArray[np.int64] | None:
    """For q and k, the stored row of each published row; None for a tensor that is stored unchanged."""
    heads = _rotated_heads(config, name)
    if heads is None:
        return None
    return np.arange(heads * config.head_dim).reshape(heads, -1, 2).swapaxes(1, 2).ravel()


def _rotated_heads(config: DecoderConfig, name: str) -> int | None:
    if name.endswith(".self_attn.q_proj.weight"):
        return config.num_attention_heads
    return config.num_key_value_heads if name.endswith(".self_attn.k_proj.weight") else None


class GgufModel:
    """An opened GGUF file as a `TensorFile` of published tensors, and as the `TextSources` of its model.

    Quantized weights appear as the stored tensors of a compressed-tensors folder, which are made when read: Q4_0 and
    Q8_0 are unpacked, the other types widened and rounded to INT8. Embedding and head in Q6_K, llama.cpp's choice in
    4-bit files, appear as float16.
    """

    path: Path
    config: DecoderConfig
    tensors: dict[str, TensorInfo]
    packings: frozenset[Packing]  # all that occur in the file

    def __init__(self, path: Path):
        self.path = path
        self._file = GgufFile(path)
        try:
            _require_whole_model(path, self._file)
            self.config = read_config(self._file)
            self._sources: dict[str, str] = {}  # name in `tensors` -> published name
            self.tensors = {}
            packings = set()
            for name, tensor in self._published():
                infos, packing = self._infos_of(name, tensor)
                self._sources.update({info.name: name for info in infos})
                self.tensors.update({info.name: info for info in infos})
                if packing is not None:
                    packings.add(packing)
            self.packings = frozenset(packings)
            self._rounded: tuple[str, _Int8] | None = None  # the last rounded weight, with its stored name
        except BaseException:
            self._file.close()
            raise

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return gguf_tokenizer.read_eos_token_ids(self.path, self._file.metadata, self.config.vocab_size)

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        return (self.path,) if gguf_tokenizer.TOKENS in self._file.metadata else ()

    @property
    def has_chat_template(self) -> bool:
        return gguf_tokenizer.TEMPLATE in self._file.metadata

    def tokenizer(self) -> Tokenizer:
        return gguf_tokenizer.read_tokenizer(self.path, self._file.metadata)

    def chat_template(self) -> ChatTemplate:
        return gguf_tokenizer.read_template(self.path, self._file.metadata)

    def generation_config(self) -> tuple[Path, dict[str, Any]]:
        """The file, and its sampling defaults by the names of a generation_config.json."""
        metadata = self._file.metadata
        return self.path, {name: metadata[key] for name, key in GGUF_KEYS.items() if key in metadata}

    def read(self, name: str) -> TensorView:
        published, info = self._sources[name], self.tensors[name]
        tensor = self._file.tensors[stored_name(published)]
        if name.endswith(SHAPE):
            return TensorView(name, info.dtype, info.shape, np.array(tensor.shape, "<i8").data.cast("B"))
        order = published_rows(self.config, published)
        if order is None and tensor.type.id in FLOAT_DTYPES:
            return aligned_view(name, info.dtype, info.shape, self._file.view(tensor.name))
        values = self._rows(tensor, info, name)
        if order is not None:
            values = values[order]
        return TensorView(name, info.dtype, info.shape, values.reshape(-1).view(np.uint8).data)

    @property
    def quantized_types(self) -> tuple[str, ...]:
        """The block types of its tensors, the commonest first."""
        kinds = Counter(t.type.name for t in self._file.tensors.values() if t.type.id not in FLOAT_DTYPES)
        return tuple(name for name, _ in kinds.most_common())

    def is_widened(self, name: str) -> bool:
        """Whether a published tensor is stored in blocks that `read` rounds to codes or to float16."""
        kind = self._file.tensors[stored_name(name)].type
        return kind.id not in FLOAT_DTYPES and kind.id not in PACKINGS

    def float32(self, name: str) -> npt.NDArray[np.float32]:
        """The file's own numbers (N, K) of such a tensor."""
        tensor = self._file.tensors[stored_name(name)]
        blocks = np.frombuffer(self._file.view(tensor.name), np.uint8).reshape(tensor.shape[0], -1)
        values = np.empty(tensor.shape, np.float32)
        by_rows(blocks, values, lambda part: widen(part, tensor.type))
        self._file.release(tensor.name)
        order = published_rows(self.config, name)
        return values if order is None else values[order]

    def release(self, name: str) -> None:
        self._rounded = None
        self._file.release(stored_name(self._sources[name]))

    def close(self) -> None:
        self._file.close()

    def _published(self) -> Iterator[tuple[str, GgufTensor]]:
        """Every tensor of the file and its published name. Raises FormatError for one that no MiniCPM has."""
        published = {stored_name(name): name for name in self.config.parameter_shapes()}
        for tensor in self._file.tensors.values():
            name = published.get(tensor.name)
            if name is None:
                problem = f"{brief(tensor.name)} is not a tensor of the MiniCPM in its metadata"
                raise FormatError(self.path, problem + _unsupported(tensor.name))
            yield name, tensor

    def _infos_of(self, name: str, tensor: GgufTensor) -> tuple[Sequence[TensorInfo], Packing | None]:
        """The stored tensors that represent a tensor of the file, and their packing."""
        if (dtype := FLOAT_DTYPES.get(tensor.type.id)) is not None:
            return [TensorInfo(name, dtype, tensor.shape)], None
        if len(tensor.shape) != 2:
            raise FormatError(self.path, f"{tensor.name} is {tensor.type.name}, but not a matrix")
        if tensor.type is Q6_K and name in (EMBEDDING, HEAD):
            return [TensorInfo(name, "float16", tensor.shape)], None
        packing = PACKINGS.get(tensor.type.id, INT8_PACKING)
        return packing.stored(name, tensor.shape), packing

    def _rows(self, tensor: GgufTensor, info: TensorInfo, name: str) -> npt.NDArray[np.generic]:
        """A copy of a tensor's numbers (N, ...) in the file's row order, converted to the dtype of `info`."""
        blocks = np.frombuffer(self._file.view(tensor.name), np.uint8).reshape(math.prod(tensor.shape[:-1]), -1)
        if tensor.type.id in FLOAT_DTYPES:
            return blocks
        made: npt.NDArray[np.generic]
        if info.dtype == "float16" and not name.endswith(SCALE):
            made = by_rows(blocks, np.empty(tensor.shape, "<f2"), lambda part: self._halves(part, tensor))
            if not np.isfinite(made).all():
                raise FormatError(
                    self.path, f"{tensor.name} holds numbers that are not finite or too large for float16"
                )
        elif tensor.type.id not in PACKINGS:
            codes, scales = self._int8(tensor, blocks)
            made = scales if name.endswith(SCALE) else codes
        elif name.endswith(SCALE):
            made = scales_of(blocks, tensor.type)
        else:
            width = tensor.shape[1] * PACKINGS[tensor.type.id].bits // 8
            made = by_rows(
                blocks, np.empty((len(blocks), width), np.uint8), lambda part: packed_codes(part, tensor.type)
            )
        self._file.release(tensor.name)
        return made

    def _int8(self, tensor: GgufTensor, blocks: npt.NDArray[np.uint8]) -> _Int8:
        """Codes and scales of a weight of another type. Both are kept, because a caller reads one after the other."""
        if self._rounded is None or self._rounded[0] != tensor.name:
            try:
                self._rounded = tensor.name, int8_of(blocks, tensor.type)
            except ModelError as error:
                raise FormatError(self.path, f"{tensor.name}: {error}") from error
        return self._rounded[1]

    @staticmethod
    def _halves(blocks: npt.NDArray[np.uint8], tensor: GgufTensor) -> npt.NDArray[np.float16]:
        with np.errstate(over="ignore"):
            return widen(blocks, tensor.type).astype("<f2")


# --- configuration -----------------------------------------------------------------------------------------------


def model_fields(config: DecoderConfig) -> list[Field]:
    """The metadata of a configuration, in the order of llama.cpp's converter."""
    numbers: dict[str, tuple[ValueType, int | float]] = {
        "block_count": (ValueType.UINT32, config.num_hidden_layers),
        "context_length": (ValueType.UINT32, config.max_position_embeddings),
        "embedding_length": (ValueType.UINT32, config.hidden_size),
        "feed_forward_length": (ValueType.UINT32, config.intermediate_size),
        "attention.head_count": (ValueType.UINT32, config.num_attention_heads),
        "attention.head_count_kv": (ValueType.UINT32, config.num_key_value_heads),
        "rope.dimension_count": (ValueType.UINT32, config.head_dim),
        "rope.freq_base": (ValueType.FLOAT32, config.rope_theta),
        "attention.layer_norm_rms_epsilon": (ValueType.FLOAT32, config.rms_norm_eps),
        "vocab_size": (ValueType.UINT32, config.vocab_size),
        "embedding_scale": (ValueType.FLOAT32, config.scale_emb),
        "residual_scale": (ValueType.FLOAT32, config.residual_scale),
        # llama.cpp divides by it.
        "logit_scale": (ValueType.FLOAT32, config.hidden_size / config.dim_model_base),
    }
    fields = [Field(f"{ARCHITECTURE}.{key}", kind, value) for key, (kind, value) in numbers.items()]
    scaling = config.rope_scaling
    if scaling is not None and scaling.type == "linear":
        fields.append(Field(f"{ARCHITECTURE}.rope.scaling.type", ValueType.STRING, "linear"))
        fields.append(Field(f"{ARCHITECTURE}.rope.scaling.factor", ValueType.FLOAT32, scaling.factor))
    elif scaling is not None:
        fields.append(Field(f"{ARCHITECTURE}.{DYNAMIC_NTK_KEY}", ValueType.FLOAT32, scaling.factor))
    return fields


def read_config(file: GgufFile) -> DecoderConfig:
    """The configuration in the metadata. Raises FormatError for an impossible one, ModelError for another family."""
    architecture = file.metadata.get("general.architecture")
    if architecture not in (ARCHITECTURE, LLAMA):
        raise ModelError(
            f"{file.path}: its architecture is {brief(architecture)}; expected 'minicpm', or 'llama' for a MiniCPM "
            "whose scales are multiplied into the weights"
        )
    keys = _Keys(file, str(architecture))
    if keys.get("expert_count"):
        raise ModelError(f"{file.path}: this is a mixture of experts; use a dense MiniCPM-2B or MiniCPM-1B")
    try:
        plain = _plain_config(keys)
        for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
            if keys.get(key) not in (None, plain.head_dim):
                raise ModelError(
                    f"{keys.name(key)} is {brief(keys.get(key))}, expected {plain.head_dim}, which is "
                    "embedding_length / attention.head_count; heads of another size are not supported"
                )
        window = keys.get("attention.sliding_window")
        if window is not None and (not isinstance(window, int) or 0 < window < plain.max_position_embeddings):
            name = keys.name("attention.sliding_window")
            raise ModelError(f"{name} is {brief(window)}, but this version computes full attention only")
        return llama.unit_scales(plain) if architecture == LLAMA else _scaled(keys, plain)
    except ModelError as error:
        raise FormatError(file.path, str(error)) from error


class _Keys:
    """The metadata of one architecture."""

    def __init__(self, file: GgufFile, architecture: str):
        self.file = file
        self._architecture = architecture

    def name(self, key: str) -> str:
        return f"{self._architecture}.{key}"

    def get(self, key: str, default: Any = None) -> Any:
        return self.file.metadata.get(self.name(key), default)

    def required(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise ModelError(f"{self.name(key)} is missing")
        return value


def _plain_config(keys: _Keys) -> DecoderConfig:
    metadata = keys.file.metadata
    heads = keys.required("attention.head_count")
    tokens = metadata.get(gguf_tokenizer.TOKENS)
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")}
    embedding = keys.file.tensors.get(stored_name(EMBEDDING))
    known: dict[str, Any] = {
        "vocab_size": keys.get("vocab_size", len(tokens.items) if isinstance(tokens, Array) else None),
        "hidden_size": keys.required("embedding_length"),
        "intermediate_size": keys.required("feed_forward_length"),
        "num_hidden_layers": keys.required("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.get("attention.head_count_kv", heads),
        "max_position_embeddings": keys.required("context_length"),
        "rms_norm_eps": keys.required("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.get("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(keys),
        "tie_word_embeddings": stored_name(HEAD) not in keys.file.tensors,
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["padding"],
        "dtype": "float32" if embedding is None else FLOAT_DTYPES.get(embedding.type.id, "float32"),
    }
    if known["num_key_value_heads"] == 0:
        raise ModelError(f"{keys.name('attention.head_count_kv')} is 0")
    return DecoderConfig(**known)


def _rope_scaling(keys: _Keys) -> RopeScaling | None:
    if (factor := keys.get(DYNAMIC_NTK_KEY)) is not None:
        return RopeScaling("dynamic", factor)
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear"))  # the latter in files of 2023
    # As in llama.cpp, a factor without a type divides the positions.
    kind = keys.get("rope.scaling.type", "none" if factor in (None, 0.0, 1.0) else "linear")
    return None if kind == "none" else RopeScaling(kind, factor)


def _unsupported(name: str) -> str:
    """The meaning of a tensor of other models; "" for an unknown one."""
    if name.endswith(".bias"):
        return "; projections with biases are not supported"
    if name.startswith(("rope_freqs", "rope_factors")):
        return "; rope scaling by a factor for each frequency (llama3, longrope) is not supported"
    if "_exps." in name or "ffn_gate_inp" in name:
        return "; mixtures of experts are not supported"
    return ""


def _scaled(keys: _Keys, plain: DecoderConfig) -> DecoderConfig:
    missing = [keys.name(key) for key in SCALE_KEYS if keys.get(key) is None]
    if missing:
        raise ModelError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing, as in files of early 2024, but "
            "the model needs them; repair it with minicpm doctor FILE --fix OUT.gguf, or convert it again from its "
            "folder"
        )
    scales = {key: keys.get(key) for key in SCALE_KEYS}
    for key, value in scales.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ModelError(f"{keys.name(key)} must be a positive number, got {brief(value)}")
    return replace(
        plain,
        scale_emb=simple(float(scales["embedding_scale"])),
        scale_depth=scale_depth_of(float(scales["residual_scale"]), plain.num_hidden_layers, np.float32),
        dim_model_base=_dim_model_base(float(scales["logit_scale"]), plain.hidden_size),
    )


def _dim_model_base(logit_scale: float, hidden_size: int) -> int:
    base = round(hidden_size / logit_scale)
    if base < 1 or np.float32(hidden_size / base) != np.float32(logit_scale):
        raise ModelError(
            f"{ARCHITECTURE}.logit_scale {logit_scale:g} is not embedding_length {hidden_size} over a whole number "
            "(MiniCPM's dim_model_base)"
        )
    return base


def _require_whole_model(path: Path, file: GgufFile) -> None:
    metadata = file.metadata
    if not file.tensors:
        raise FormatError(path, "holds no tensors, only a vocabulary; give the file of the model itself")
    count = metadata.get("split.count", 1)
    if isinstance(count, int) and count > 1:
        raise FormatError(path, f"one of {brief(count)} parts of a model; join them with llama-gguf-split --merge")
    kind = metadata.get("general.type", "model")
    if kind != "model":
        what = {
            "adapter": "a LoRA adapter; merge it into its model with llama-export-lora",
            "mmproj": "a projector of pictures; give the file of the model itself",
            "imatrix": "an importance matrix for quantizing; give the file of the model itself",
        }.get(str(kind), "no model; give the file of a model")
        raise FormatError(path, f"general.type is {brief(kind)}: this is {what}")
