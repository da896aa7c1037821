"""Write a model as one GGUF file for llama.cpp and related programs, tensor by tensor.

    write_gguf("MiniCPM-2B-dpo-bf16", "MiniCPM-2B-q4_0.gguf", dtype="q4_0")

The file is checked, then moved into place at once. Unquantized weights are kept, rounded to another float type, or
rounded to Q8_0 or Q4_0 as ggml's reference does. Codes and scales of a quantized model are copied unchanged if no other
type is asked for: the scale of a group of 64 or 128 is repeated per block of 32, so the file holds bit for bit the same
weights.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import isclose
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minicpm.errors import FormatError, ModelError, brief
from minicpm.export.convert import Conversion
from minicpm.export.dequantized import open_dequantized
from minicpm.export.destination import forget_cached_pages, new_file, report_full_disk, require_disk
from minicpm.formats.checkpoint import Checkpoint, open_checkpoint
from minicpm.formats.compressed_tensors import PACKED, SCALE, SHAPE
from minicpm.formats.config import DecoderConfig
from minicpm.formats.derive import stream
from minicpm.formats.folder import ModelFolder
from minicpm.formats.generation import GGUF_KEYS
from minicpm.formats.gguf import (
    BF16,
    F16,
    F32,
    Q4_0,
    Q8_0,
    BlockType,
    Field,
    GgufFile,
    GgufTensor,
    GgufWriter,
    ValueType,
    has_magic,
    header_bytes,
    is_gguf,
)
from minicpm.formats.gguf_blocks import BLOCK_TYPES_OF_BITS, GROUP_SIZE, ROWS_ELEMENTS, from_packed, quantize
from minicpm.formats.gguf_model import ARCHITECTURE, FLOAT_DTYPES, FLOAT_TYPES, model_fields, rows_to_store, stored_name
from minicpm.formats.gguf_tokenizer import tokenizer_fields
from minicpm.formats.llama import EMBEDDING, HEAD
from minicpm.formats.sequential import writing
from minicpm.formats.tensor import TensorView
from minicpm.progress import Progress, Silent, task, watched
from minicpm.quant.format import IntWeight, read_weight
from minicpm.tokenizer import Tokenizer, first_difference

# Embedding and head of a 4-bit file get 8 bits: in a small model they carry much of the loss (docs/formats.md).
DTYPES: dict[str, tuple[BlockType, BlockType]] = {  # of the blocks' matrices, of embedding and head
    **{dtype: (kind, kind) for dtype, kind in FLOAT_TYPES.items()},
    "q8_0": (Q8_0, Q8_0),
    "q4_0": (Q4_0, Q8_0),
}
FILE_TYPES = {F32.id: 0, F16.id: 1, Q4_0.id: 2, Q8_0.id: 7, BF16.id: 32}  # llama.cpp's llama_ftype
QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class _Plan:
    checkpoint: Checkpoint
    tokenizer: Tokenizer  # the folder's own
    fields: list[Field]
    tensors: list[GgufTensor]
    published: dict[str, str]  # stored name -> published name
    progress: Progress

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


def write_gguf(
    source: str | Path,
    destination: str | Path,
    *,
    dtype: str | None = None,
    name: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write the model `source`, a folder or a GGUF file, to the new file `destination`.

    `dtype` is float32, float16, bfloat16, q8_0 or q4_0; None keeps each weight's own, and the codes of quantized ones
    as the engines read them. Otherwise quantized weights become floats, which are rounded to `dtype`. `name` is the
    model's name in the file. Raises ValueError for invalid arguments, ModelError and FormatError for other failures.
    Nothing half-written remains.
    """
    source, destination = Path(source), Path(destination)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if not is_gguf(source):
        ModelFolder(source)
    if destination.exists() and destination.samefile(source):
        raise ValueError(f"{destination}: source and destination are the same; name another destination")
    check_file_destination(destination, overwrite)
    with _opened(source, dtype) as checkpoint:
        shown = name or source.resolve().name
        plan = _plan(checkpoint, dtype, shown.removesuffix(".gguf"), progress or Silent())
        require_disk(destination, plan.weight_bytes)
        with report_full_disk(destination, plan.weight_bytes), new_file(destination) as partial:
            checksums = _write(partial, plan)
            _check(partial, plan, checksums)
            nbytes = partial.stat().st_size
        kind = _main_type(plan.tensors).name
        return Conversion(
            source,
            destination,
            checkpoint.format,
            "gguf",
            kind,
            len(plan.tensors),
            nbytes,
            (destination.name,),
            checkpoint.dequantized,
        )


def _opened(source: Path, dtype: str | None) -> Checkpoint:
    """The source with its codes, or in floats if they are to be rounded anew."""
    return open_checkpoint(source, allow_quantized=True) if dtype is None else open_dequantized(source)


def check_file_destination(destination: Path, overwrite: bool) -> None:
    """Raise ValueError unless a new GGUF file may be written to `destination`."""
    if destination.suffix != ".gguf":
        raise ValueError(f"{destination}: the destination is a file; give it a name that ends in .gguf")
    if destination.is_dir() or (destination.is_symlink() and not destination.exists()):
        raise ValueError(f"{destination}: exists and is not a file; choose another destination")
    if not destination.exists():
        return
    if not overwrite:
        raise ValueError(f"{destination}: already exists; choose another destination or pass --force to replace it")
    if not destination.is_file() or not has_magic(destination):
        raise ValueError(f"{destination}: --force replaces GGUF files only, and this is not one; remove it yourself")


# --- planning ----------------------------------------------------------------------------------------------------


def _plan(checkpoint: Checkpoint, dtype: str | None, name: str, progress: Progress) -> _Plan:
    if checkpoint.folded_scales is not None:
        raise ModelError(f"{checkpoint.path}: its scales are multiplied into the weights; convert it --to hf first")
    config = checkpoint.config
    tokenizer = checkpoint.tokenizer()  # first, because it validates untrusted files
    tensors = [
        GgufTensor(stored_name(published), _type_of(checkpoint, published, shape, dtype), shape)
        for published, shape in config.parameter_shapes().items()
    ]
    fields = [
        Field("general.architecture", ValueType.STRING, ARCHITECTURE),
        Field("general.type", ValueType.STRING, "model"),
        *_sampling_fields(checkpoint),
        Field("general.name", ValueType.STRING, name),
        Field("general.size_label", ValueType.STRING, _size_label(config.num_parameters())),
        Field("general.file_type", ValueType.UINT32, FILE_TYPES[_main_type(tensors).id]),
        Field("general.quantization_version", ValueType.UINT32, QUANTIZATION_VERSION),
        *model_fields(config),
        *_tokenizer_fields(checkpoint),
    ]
    published = {stored_name(name): name for name in config.parameter_shapes()}
    return _Plan(checkpoint, tokenizer, fields, tensors, published, progress)


def _tokenizer_fields(checkpoint: Checkpoint) -> list[Field]:
    """The tokenizer's metadata: those of a GGUF file unchanged, else made of a folder's files."""
    if checkpoint.format != "gguf":
        return tokenizer_fields(checkpoint.path, checkpoint.config.vocab_size, checkpoint.eos_token_ids)
    with contextlib.closing(GgufFile(checkpoint.path)) as file:
        return [field for key, field in file.fields().items() if key.startswith("tokenizer.")]


def _type_of(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], dtype: str | None) -> BlockType:
    if len(shape) == 1:
        return F32  # llama.cpp needs norms in float32
    packing = checkpoint.packings.get(name)
    if packing is not None:
        kind = BLOCK_TYPES_OF_BITS[packing.bits]
    elif dtype is None:
        kind = FLOAT_TYPES[checkpoint.tensors[name].dtype]
    else:
        kind = DTYPES[dtype][name in (EMBEDDING, HEAD)]
    if shape[1] % kind.elements:
        raise ModelError(
            f"{name} has {shape[1]} input features, not a multiple of {kind.elements}, which {kind.name} needs; "
            "choose float16 or bfloat16"
        )
    return kind


def _main_type(tensors: list[GgufTensor]) -> BlockType:
    """The type that most of the blocks' matrices have."""
    kinds = [tensor.type for tensor in tensors if tensor.name.startswith("blk.") and len(tensor.shape) == 2]
    return max(kinds, key=kinds.count)


def _sampling_fields(checkpoint: Checkpoint) -> list[Field]:
    path, raw = checkpoint.generation_config()
    advice = {name: raw[name] for name in GGUF_KEYS if raw.get(name) is not None}
    if raw.get("do_sample") is False:
        advice["temperature"] = 0.0
    fields = []
    for name, value in advice.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1 << 31:
            raise FormatError(path, f"{name} must be a number, got {brief(value)}")
        is_whole = name == "top_k"
        kind = ValueType.UINT32 if is_whole else ValueType.FLOAT32
        fields.append(Field(GGUF_KEYS[name], kind, int(value) if is_whole else value))
    return fields


def _size_label(parameters: int) -> str:
    """2724880896 -> 2.7B, 8123456 -> 8.1M: at least two digits."""
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters > factor or suffix == "K":
            scaled = parameters / factor
            return f"{scaled:.{max(0, 2 - len(str(round(scaled)).lstrip('0')))}f}{suffix}"
    raise AssertionError


# --- writing and checking ----------------------------------------------------------------------------------------


def _write(path: Path, plan: _Plan) -> dict[str, int]:
    """Write the file; returns the CRC-32 of every tensor by stored name."""
    with (
        task(plan.progress, "converting", plan.weight_bytes),
        writing(GgufWriter(path, plan.fields, plan.tensors)) as writer,
    ):
        return {
            tensor.name: writer.write(tensor.name, watched(_content(plan, tensor), plan.progress))
            for tensor in plan.tensors
        }


def _content(plan: _Plan, tensor: GgufTensor) -> Iterator[memoryview]:
    """A tensor's bytes, some rows at a time; the pages of rows that were read are released."""
    checkpoint, name = plan.checkpoint, plan.published[tensor.name]
    weight = read_weight(checkpoint, name)
    order = rows_to_store(checkpoint.config, name)
    N, width = tensor.shape[0], tensor.nbytes // tensor.shape[0]
    step = max(1, ROWS_ELEMENTS // (width // tensor.type.nbytes * tensor.type.elements))
    for start in range(0, N, step):
        rows = slice(start, start + step) if order is None else order[start : start + step]
        try:
            if isinstance(weight, IntWeight):
                yield _blocks(weight.rows(rows), tensor.type)
            else:
                yield from _rounded(weight, rows, tensor.type)
        except ModelError as error:
            raise error if str(error).startswith(name) else ModelError(f"{name}: {error}") from error
        for suffix in (PACKED, SCALE, SHAPE) if isinstance(weight, IntWeight) else ("",):
            checkpoint.release(name + suffix)


def _blocks(weight: IntWeight, kind: BlockType) -> memoryview:
    """Codes and scales unchanged; each scale is repeated for the blocks of 32 in its group."""
    count = weight.in_features // GROUP_SIZE
    halves = weight.scales.astype("<f2")
    if not np.array_equal(halves.astype(np.float32), weight.scales.astype(np.float32)):
        raise ModelError(f"its {weight.scales.dtype} scales do not fit into the float16 scales of {kind.name}")
    scales = np.repeat(halves, weight.group_size // GROUP_SIZE, axis=1)[:, :count]
    packed = weight.packed[:, : weight.in_features * weight.bits // 8]
    return from_packed(packed, scales, kind).data.cast("B")


def _rounded(view: TensorView, rows: slice | npt.NDArray[np.int64], kind: BlockType) -> Iterator[memoryview]:
    part = np.ascontiguousarray(view.storage()[rows])
    chosen = TensorView(view.name, view.dtype, part.shape, part.reshape(-1).view(np.uint8).data)
    if (dtype := FLOAT_DTYPES.get(kind.id)) is not None:
        yield from stream(chosen, 1.0, dtype)
    else:
        yield quantize(chosen.float32(), kind).data.cast("B")


def _check(path: Path, plan: _Plan, checksums: dict[str, int]) -> None:
    """Open the written file like any other file, and compare it with the plan."""
    forget_cached_pages(path)
    header = header_bytes(plan.fields, plan.tensors)
    with path.open("rb") as opened:
        if opened.read(len(header)) != header:
            raise FormatError(path, "reads back with another header than was written; is the disk failing?")
    with task(plan.progress, "checking", plan.weight_bytes), contextlib.closing(GgufFile(path)) as file:
        for tensor in plan.tensors:
            checksum = 0
            view = file.view(tensor.name)
            for start in range(0, len(view), 1 << 22):
                checksum = zlib.crc32(view[start : start + (1 << 22)], checksum)
                file.release(tensor.name)
            if checksum != checksums[tensor.name]:
                problem = "reads back with other bytes than were written; is the disk failing?"
                raise FormatError(path, f"{tensor.name} {problem}")
            plan.progress.advance(tensor.nbytes)
    with open_checkpoint(path, allow_quantized=True) as written:
        _require_same_model(plan.checkpoint.config, written.config, path)
        _require_same_text(plan, written.tokenizer())


def _require_same_model(wanted: DecoderConfig, found: DecoderConfig, path: Path) -> None:
    """Compare the configurations. GGUF stores numbers as float32 and leaves out what only training needs."""
    kept = wanted.to_dict().keys() - {
        "initializer_range",
        "torch_dtype",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
    }
    for key in sorted(kept):
        before, after = wanted.to_dict()[key], found.to_dict()[key]
        is_close = isinstance(before, float) and isinstance(after, int | float) and isclose(before, after, rel_tol=1e-6)
        if before != after and not is_close:
            raise FormatError(path, f"{key} {before} reads back as {after}; please report this as a bug")


def _require_same_text(plan: _Plan, other: Tokenizer) -> None:
    """Check that both tokenizers agree: the folder may use tokenizer.json, but the file has tokenizer.model's."""
    one = plan.tokenizer
    different = first_difference(one, other)
    if different is None and one.vocab_size == other.vocab_size and one.special_token_ids == other.special_token_ids:
        return
    shown = "its vocabulary" if different is None else brief(different)
    raise ModelError(
        f"{plan.checkpoint.path}: tokenizer.model, which GGUF carries, differs from the tokenizer the folder uses "
        f"({shown}); nothing was written"
    )
