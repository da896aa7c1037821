"""A model on disk in any format: its configuration, and its tensors under the published names.

    with open_checkpoint("MiniCPM-2B-dpo-bf16") as checkpoint:
        view = checkpoint.read("model.norm.weight")

Opening reads headers and checks names and shapes. The weights are mapped, and read on first access.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from minicpm.chat import ChatTemplate
from minicpm.errors import FormatError, ModelError, brief
from minicpm.formats import compressed_tensors, granite, hf, llama, vllmcpm
from minicpm.formats.compressed_tensors import Packing
from minicpm.formats.config import CONFIG_FILE, DecoderConfig, architecture_names, read_config_json
from minicpm.formats.folder import ModelFolder
from minicpm.formats.generation import GENERATION_FILE, read_eos_token_ids
from minicpm.formats.gguf import is_gguf
from minicpm.formats.gguf_model import GgufModel
from minicpm.formats.mapped import TensorFile
from minicpm.formats.recognition import weights_of_other_tools
from minicpm.formats.tensor import FLOAT_DTYPES, TensorInfo, TensorView
from minicpm.formats.text_sources import TOKENIZER_FILES, FolderTexts, TextSources
from minicpm.formats.wrapped_names import published_names, wrapped_example
from minicpm.tokenizer import Tokenizer

# Tables that old checkpoints store although the configuration determines them.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached")
# Samples in which a stored tied head is compared with the embedding.
TIE_SAMPLES, TIE_SAMPLE_BYTES = 64, 1 << 16


@dataclass(frozen=True)
class _Form:
    """How one format is recognised and read."""

    architecture: str
    model_type: str
    read_config: Callable[[dict[str, Any]], DecoderConfig]
    open_weights: Callable[[ModelFolder], dict[str, TensorFile]] = hf.open_weights


FORMS = {
    "vllmcpm": _Form("CPMDragonflyForCausalLM", "cpm_dragonfly", vllmcpm.read_config, vllmcpm.open_weights),
    "granite": _Form("GraniteForCausalLM", "granite", granite.read_config),
    "llama": _Form("LlamaForCausalLM", "llama", llama.read_config),
    "hf": _Form("MiniCPMForCausalLM", "minicpm", hf.read_config),
}


class ExactFloats(Protocol):
    """The numbers of a file whose weights are rounded to codes or float16 when `Checkpoint.read` reads them."""

    @property
    def quantized_types(self) -> tuple[str, ...]:
        """The types of its quantized tensors, the commonest first."""

    def is_widened(self, name: str) -> bool:
        """Whether `Checkpoint.read` rounds the tensor of a published name."""

    def float32(self, name: str) -> npt.NDArray[np.float32]:
        """The file's own numbers (N, K) of such a tensor."""


@dataclass(frozen=True)
class Opened:
    """What the reader of a format found, before it is checked against the configuration."""

    path: Path
    format: str
    config: DecoderConfig
    stored: dict[str, TensorFile]  # by stored name
    published: dict[str, str]  # published name -> stored name
    texts: TextSources
    quantization: frozenset[Packing] = frozenset()
    has_signed_scales: bool = False  # whether the format's scales may be negative
    eos_token_ids: tuple[int, ...] = ()
    folded_scales: llama.FoldedScales | None = None
    exact_floats: ExactFloats | None = None
    dequantized: str | None = None  # the kinds of quantized weights that are read as float32


class Checkpoint:
    """An opened model of any format; a context manager. `open_checkpoint` opens a folder or a GGUF file."""

    path: Path
    format: str  # "hf", "llama", "granite", "vllmcpm" or "gguf"
    config: DecoderConfig  # its dtype is that of the stored embedding
    tensors: dict[str, TensorInfo]  # published name -> stored tensor, in the order of config.parameter_shapes()
    packings: dict[str, Packing]  # of quantized weights, by published name; stored as name + _packed, _scale, _shape
    eos_token_ids: tuple[int, ...]  # ids that end a text: the configuration's, then generation_config.json's
    tokenizer_files: tuple[Path, ...]
    folded_scales: llama.FoldedScales | None  # constants that a llama-format folder records as folded into its weights
    has_signed_scales: bool  # whether the scale of a packed weight may be negative
    exact_floats: ExactFloats | None  # of a GGUF file
    dequantized: str | None  # the kinds of quantized weights that are read as float32 (export/dequantized.py)

    def __init__(self, opened: Opened):
        self._opened, self.exact_floats, self.dequantized = opened, opened.exact_floats, opened.dequantized
        self.path, self.format, config = opened.path, opened.format, opened.config
        self._texts, self.tokenizer_files = opened.texts, opened.texts.tokenizer_files
        self.eos_token_ids, self.folded_scales = opened.eos_token_ids, opened.folded_scales
        self.has_signed_scales = opened.has_signed_scales
        self._stored = opened.published
        self._sources = {published: opened.stored[name] for published, name in self._stored.items()}
        self._files = set(opened.stored.values())
        self.packings = compressed_tensors.packed_parameters(self.path, config, opened.quantization, self._infos())
        if opened.quantization and not self.packings:
            raise FormatError(self.path, "config.json declares quantized weights, but none is stored packed")
        _require_parameters(self.path, config, self._infos(), self.packings)
        if config.tie_word_embeddings and llama.HEAD in self._stored:
            self._require_tied_head()
        infos = self._infos()
        self.tensors = {name: infos[name] for name in _stored_names(config, self.packings)}
        self.config = config if self.packings else config.with_dtype(self.tensors[llama.EMBEDDING].dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters as stored."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def weight_files(self) -> tuple[Path, ...]:
        return tuple(sorted(file.path for file in self._files))

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a template of its own. Otherwise MiniCPM's built-in one is used."""
        return self._texts.has_chat_template

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises FormatError if it has no usable one."""
        return self._texts.tokenizer()

    def chat_template(self) -> ChatTemplate:
        """The model's chat template, or MiniCPM's own if it has none."""
        return self._texts.chat_template()

    def generation_config(self) -> tuple[Path, dict[str, Any]]:
        """The file with generation defaults, and those by transformers' names; {} if there are none."""
        return self._texts.generation_config()

    def read(self, name: str) -> TensorView:
        """The tensor of a published name, as a view of the file's pages. Raises KeyError if `tensors` lacks it."""
        self.tensors[name]
        return self._read(name)

    def release(self, name: str) -> None:
        """Release a tensor's pages after use. Changes that were written into its view are lost."""
        self._sources[name].release(self._stored[name])

    def with_tensors(self, file: TensorFile, kinds: str) -> Checkpoint:
        """The same model with the float tensors of another file by published names, made of quantized `kinds`."""
        return Checkpoint(
            replace(
                self._opened,
                stored=dict.fromkeys(file.tensors, file),
                published={name: name for name in file.tensors},
                quantization=frozenset(),
                has_signed_scales=False,
                exact_floats=None,
                dequantized=kinds,
            )
        )

    def read_as(self, config: DecoderConfig, file: TensorFile) -> Checkpoint:
        """The same model with another configuration, and its tensors by published names read from `file`."""
        published = {name: name for name in file.tensors}
        return Checkpoint(
            replace(self._opened, config=config, stored=dict.fromkeys(file.tensors, file), published=published)
        )

    def damaged(self, problem: str) -> FormatError:
        """An error about a problem in the model's files."""
        return FormatError(self.path, problem)

    def close(self) -> None:
        """Close the files; views already read stay valid."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _infos(self) -> dict[str, TensorInfo]:
        stored = {name: source.tensors[self._stored[name]] for name, source in self._sources.items()}
        return {name: TensorInfo(name, info.dtype, info.shape) for name, info in stored.items()}

    def _read(self, name: str) -> TensorView:
        return self._sources[name].read(self._stored[name]).renamed(name)

    def _require_tied_head(self) -> None:
        """Raise FormatError unless a head that is stored despite a tied configuration equals the embedding."""
        if llama.EMBEDDING not in self.packings:
            head, embedding = self._read(llama.HEAD), self._read(llama.EMBEDDING)
            if head.dtype == embedding.dtype and _same_bytes(head.buffer, embedding.buffer):
                return
        raise FormatError(
            self.path,
            "lm_head.weight differs from model.embed_tokens.weight although the configuration ties them; "
            "if the head is a separate matrix, set tie_word_embeddings to false in config.json",
        )


def open_checkpoint(path: str | Path, *, allow_quantized: bool = False) -> Checkpoint:
    """Open a model folder of any known format, or a GGUF file, and check it against its configuration.

    Quantized weights are refused unless `allow_quantized` is set; the caller must then handle `packings`.
    Raises ModelError if it is not a MiniCPM model, FormatError for damaged or hostile files.
    """
    path = Path(path)
    gguf = path if is_gguf(path) else _lone_gguf(ModelFolder(path))
    opened = _open_gguf(gguf, allow_quantized) if gguf else _open_folder(ModelFolder(path), allow_quantized)
    try:
        return Checkpoint(opened)
    except BaseException:
        for file in set(opened.stored.values()):
            file.close()
        raise


def _lone_gguf(folder: ModelFolder) -> Path | None:
    """The only GGUF file of a folder without config.json, such as the download of a GGUF file."""
    found = [] if folder.has(CONFIG_FILE) else sorted(path.name for path in folder.path.glob("*.gguf"))
    if len(found) > 1:
        raise ModelError(f"{folder.path}: holds {len(found)} GGUF files; give one of them, e.g. {brief(found[0])}")
    return folder.file(found[0]) if found else None


def _open_folder(folder: ModelFolder, allow_quantized: bool) -> Opened:
    config_path = folder.file(CONFIG_FILE)
    raw = read_config_json(config_path)
    form = recognise(raw)
    try:
        if form != "hf" or not allow_quantized:
            hf.require_no_quantization(raw)
        quantization = compressed_tensors.read_quantization(raw)
        config = FORMS[form].read_config(raw)
        folded_scales = llama.kept_scales(raw) if form == "llama" else None
    except ModelError as error:
        raise ModelError(f"{config_path}: {error}") from error
    eos_token_ids = _eos_token_ids(folder, config)
    tokenizer_files = tuple(folder.file(name) for name in TOKENIZER_FILES if folder.has(name))
    stored = FORMS[form].open_weights(folder)
    try:
        published = _published(folder.path, stored, form, config)
    except BaseException:
        for file in set(stored.values()):
            file.close()
        raise
    return Opened(
        folder.path,
        form,
        config,
        stored,
        published,
        texts=FolderTexts(folder.path, tokenizer_files),
        quantization=quantization,
        eos_token_ids=eos_token_ids,
        folded_scales=folded_scales,
    )


def _open_gguf(path: Path, allow_quantized: bool) -> Opened:
    model = GgufModel(path)
    try:
        if model.packings and not allow_quantized:
            raise ModelError(
                f"{path}: its weights are quantized; float32, float16 or bfloat16 weights are needed here; "
                "the numpy backend runs Q4_0 and Q8_0"
            )
        eos_token_ids = model.eos_token_ids
    except BaseException:
        model.close()
        raise
    return Opened(
        path,
        "gguf",
        model.config,
        stored=dict.fromkeys(model.tensors, model),
        published={name: name for name in model.tensors},
        texts=model,
        quantization=model.packings,
        has_signed_scales=True,  # Q4_0's sign maps the largest weight of a block to the code -8
        eos_token_ids=eos_token_ids,
        exact_floats=model,
    )


def recognise(raw: dict[str, Any]) -> str:
    """The format that a config.json belongs to. The default is "hf", whose reader then checks it."""
    names, model_type = architecture_names(raw), raw.get("model_type")
    for form, traits in FORMS.items():
        if model_type == traits.model_type or (model_type is None and traits.architecture in names):
            return form
    return "hf"


def _eos_token_ids(folder: ModelFolder, config: DecoderConfig) -> tuple[int, ...]:
    more: tuple[int, ...] = ()
    if folder.has(GENERATION_FILE):
        more = read_eos_token_ids(folder.file(GENERATION_FILE), config.vocab_size)
    return tuple(dict.fromkeys([*config.eos_token_ids, *more]))


def _published(path: Path, stored: Mapping[str, TensorFile], form: str, config: DecoderConfig) -> dict[str, str]:
    """Published name -> stored name, without the wrappers of other tools.

    A tied model that stores its shared matrix under the head's name only has it under the embedding's.
    """
    if form == "vllmcpm":
        names: dict[str, str] = {}
        for name in stored:
            published = vllmcpm.published_name(name)
            if published in names:
                raise FormatError(path, f"{brief(name)} and {brief(names[published])} are the same tensor")
            names[published] = name
        return names
    try:
        names = published_names(stored)
    except ModelError as error:
        raise FormatError(path, str(error)) from error
    if config.tie_word_embeddings and not any(name.startswith(llama.EMBEDDING) for name in names):
        head = [name for name in names if name.startswith(llama.HEAD)]
        names.update({llama.EMBEDDING + name.removeprefix(llama.HEAD): names.pop(name) for name in head})
    return names


def _stored_names(config: DecoderConfig, packings: Mapping[str, Packing]) -> list[str]:
    """Names of the stored tensors of all parameters, in the order of config.parameter_shapes()."""
    suffixes = (compressed_tensors.PACKED, compressed_tensors.SCALE, compressed_tensors.SHAPE)
    return [name + suffix for name in config.parameter_shapes() for suffix in (suffixes if name in packings else ("",))]


def _require_parameters(
    path: Path, config: DecoderConfig, infos: dict[str, TensorInfo], packings: Mapping[str, Packing]
) -> None:
    """Raise FormatError unless the stored tensors are exactly the parameters, each with its shape and a valid dtype."""
    shapes = {name: shape for name, shape in config.parameter_shapes().items() if name not in packings}
    of_packed = {name for name in _stored_names(config, packings) if name not in shapes}
    infos = {name: info for name, info in infos.items() if name not in of_packed}
    missing = [name for name in shapes if name not in infos]
    is_foreign = not packings and (missing or set(infos) - set(shapes))
    if is_foreign and (found := weights_of_other_tools(infos)):
        raise FormatError(path, found)
    if missing == [llama.HEAD]:
        raise FormatError(
            path,
            "lm_head.weight is missing from the weights although the configuration does not tie it to the embedding; "
            "if the model is a tied one, set tie_word_embeddings to true in config.json",
        )
    if missing:
        raise FormatError(path, f"{_some(missing)} missing from the weights{_instead(infos)}")
    optional = {llama.HEAD: (config.vocab_size, config.hidden_size)}  # some files store a tied head
    for name, info in infos.items():
        if name.endswith(IGNORED_SUFFIXES):
            continue
        shape = shapes.get(name) or optional.get(name)
        if shape is None:
            problem = "the configuration has no such tensor (wrong number of layers, or a quantized model?)"
            raise FormatError(path, f"{_some([n for n in infos if n not in shapes])} unexpected: {problem}")
        if info.shape != shape:
            raise FormatError(path, f"{name} has shape {list(info.shape)}, the configuration says {list(shape)}")
        if info.dtype not in FLOAT_DTYPES:
            raise FormatError(path, f"{name} is {info.dtype}; expected {', '.join(FLOAT_DTYPES)}")


def _instead(infos: Mapping[str, TensorInfo]) -> str:
    """What is stored in place of the missing tensors, and what to do."""
    example = wrapped_example(infos)
    shown = example or next(iter(infos), None)
    found = "" if shown is None else f" (stored is {brief(shown)} and the like)"
    return f"{found}; download or convert the model again"


def _some(names: list[str]) -> str:
    listed = ", ".join(brief(name).strip("'") for name in names[:3])
    return (
        f"{listed} and {len(names) - 3} more are"
        if len(names) > 3
        else f"{listed} {'is' if len(names) == 1 else 'are'}"
    )


def _same_bytes(one: memoryview, other: memoryview) -> bool:
    """Whether two buffers of equal size are the same memory, or agree in samples spread over them.

    Sampling keeps opening fast, and is enough: a head that was trained separately differs everywhere.
    """
    first, second = np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)
    if first.ctypes.data == second.ctypes.data:
        return True
    starts = np.linspace(0, max(0, first.size - TIE_SAMPLE_BYTES), TIE_SAMPLES).astype(int)
    return all(
        np.array_equal(first[start : start + TIE_SAMPLE_BYTES], second[start : start + TIE_SAMPLE_BYTES])
        for start in starts
    )
