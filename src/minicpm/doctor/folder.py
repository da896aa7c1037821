"""The known faults of published MiniCPM folders (plain, MLX, GPTQ or AWQ), and a copy without them.

Small files are repaired. Weights are copied unchanged, except rows of q and k in the wrong order. Only headers of
weight files are read, except to compare a head with the embedding.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from minicpm.doctor.faults import (
    DIM_MODEL_BASE,
    ROPE_CURE,
    ROPE_THETA,
    SCALE_DEPTH,
    SCALE_EMB,
    SCALES_CURE,
    SCALES_SYMPTOM,
    Correction,
    Examination,
    Fault,
    unreadable,
)
from minicpm.doctor.folder_tokenizer import FolderContent, look_at_tokenizer
from minicpm.errors import MiniCPMError, ModelError, brief
from minicpm.export.destination import copy_file, new_folder
from minicpm.files import json_text, read_json_object, write_text
from minicpm.formats import granite, hf, llama
from minicpm.formats.compressed_tensors import PACKED, SCALE
from minicpm.formats.config import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    MUP_KEYS,
    DecoderConfig,
    architecture_names,
    read_config_json,
)
from minicpm.formats.folder import ModelFolder
from minicpm.formats.generation import GENERATION_FILE
from minicpm.formats.gguf_model import published_rows
from minicpm.formats.llama import EMBEDDING, HEAD
from minicpm.formats.mapped import TensorFile
from minicpm.formats.safetensors import SafetensorsFile
from minicpm.formats.wrapped_names import published_names, wrapped_example
from minicpm.tokenizer import read_tokenizer_config
from minicpm.tokenizer.loading import CONFIG_FILE as TOKENIZER_CONFIG

CONSTANTS = dict(zip(MUP_KEYS, (SCALE_EMB, SCALE_DEPTH, DIM_MODEL_BASE)))
FAMILY = ("minicpm", "granite", "llama")
# Files of AutoGPTQ and AutoAWQ (2024) with the settings that config.json must have today, and AutoAWQ's names for them.
QUANTIZATION_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "quant_config": "awq"}
AWQ_WORDS = {"w_bit": "bits", "q_group_size": "group_size"}


class FolderExamination(Examination):
    """A folder's faults. Raises FormatError for files that cannot be read, ModelError for another family."""

    def __init__(self, path: Path):
        folder = ModelFolder(path)
        self._folder = folder
        self._config = read_config_json(folder.file(CONFIG_FILE))
        super().__init__(path, _kind(self._config))
        generation = (
            read_json_object(folder.file(GENERATION_FILE), MAX_CONFIG_BYTES) if folder.has(GENERATION_FILE) else {}
        )
        self._content = FolderContent(folder, self._config, read_tokenizer_config(path), generation)
        self._is_minicpm = self._config.get("model_type") == "minicpm" or (
            "MiniCPMForCausalLM" in architecture_names(self._config) and "model_type" not in self._config
        )
        if not self._is_minicpm and self._config.get("model_type") not in FAMILY:
            raise ModelError(f"{path}: its model_type is {brief(self._config.get('model_type'))}; expected 'minicpm'")
        self._weights: dict[str, TensorFile] = {}  # by stored name
        self._names: dict[str, str] = {}  # published name -> stored name
        self._reordered: DecoderConfig | None = None  # if set, the copy's rows of q and k are reordered
        self._look()

    def close(self) -> None:
        for file in set(self._weights.values()):
            file.close()

    @property
    def can_reorder_rows(self) -> bool:
        """Whether rows can be reordered: the layout of the weights is known and all files are safetensors."""
        is_known = self.kind in ("hf", "compressed-tensors")
        has_published_names = wrapped_example(self._weights) is None
        return is_known and has_published_names and all(isinstance(f, SafetensorsFile) for f in self._weights.values())

    def correct(self, correction: Correction) -> None:
        config = correction.config
        if correction.reorders_rows:
            self._reordered = config
        if isinstance(self._config.get("rope_parameters"), dict):
            self._config["rope_parameters"]["rope_theta"] = config.rope_theta
        self._config["rope_theta"] = config.rope_theta
        if self._config.get("model_type") == "granite":
            written = granite.write_config(config)
            self._config.update({key: written[key] for key in granite.MULTIPLIERS})
        elif self._is_minicpm or llama.unit_scales(config) != config:
            self._config.update(model_type="minicpm", architectures=["MiniCPMForCausalLM"])
            self._config.update({key: getattr(config, key) for key in MUP_KEYS})

    def write_repaired(self, destination: Path, *, overwrite: bool = False) -> None:
        if destination.exists() and destination.samefile(self.path):
            raise ValueError(f"{destination}: is the folder itself; a repaired copy needs a name of its own")
        content = self._content
        objects = {
            CONFIG_FILE: self._config,
            TOKENIZER_CONFIG: content.tokenizer_config,
            GENERATION_FILE: content.generation_config,
        }
        others = {*objects, *content.texts, *content.left_out}
        with new_folder(destination, overwrite) as partial:
            for entry in sorted(self.path.iterdir()):
                if entry.is_file() and entry.name not in others:
                    copy_file(self._folder.file(entry.name), partial / entry.name)
            for name, raw in objects.items():
                if raw:
                    write_text(partial / name, json_text(raw))
            for name, text in content.texts.items():
                write_text(partial / name, text)
            if self._reordered is not None:
                self._write_rows(partial, self._reordered)

    def _write_rows(self, partial: Path, config: DecoderConfig) -> None:
        """Write the rows of q and k in the other order over those of the copied files."""
        for name in config.parameter_shapes():
            order = published_rows(config, name)
            if order is None:
                continue
            for stored in (name, name + PACKED, name + SCALE):
                file = self._weights.get(stored)
                if file is None:
                    continue
                assert isinstance(file, SafetensorsFile)
                rows = np.frombuffer(file.read(stored).buffer, np.uint8).reshape(len(order), -1)[order]
                with (partial / file.path.name).open("r+b") as copy:
                    copy.seek(file.span(stored)[0])
                    copy.write(rows.data)
                    copy.flush()
                    os.fsync(copy.fileno())

    # --- examining -----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._look_at_quantization()
        if self._is_minicpm:
            self._look_at_model_type()
            self._look_at_code()
            self._look_at_scales()
            self._look_at_rope()
        self._look_at_names()
        self._look_at_head()
        if self._is_minicpm and self.kind == "mlx":
            self._look_at_mlx()
        self.faults += look_at_tokenizer(self._content)

    def _look_at_quantization(self) -> None:
        """Find quantization settings of AutoGPTQ or AutoAWQ in a file beside config.json."""
        name = next((name for name in QUANTIZATION_FILES if self._folder.has(name)), None)
        if name is None or "quantization_config" in self._config:
            return
        said = read_json_object(self._folder.file(name), MAX_CONFIG_BYTES)
        method = QUANTIZATION_FILES[name]
        self._config["quantization_config"] = {
            "quant_method": method,
            **{AWQ_WORDS.get(key, key): value for key, value in said.items()},
        }
        self.kind = method
        self.faults.append(
            Fault(
                "unsaid-quantization",
                f"weights of {method.upper()}, but only {name} says so, not {CONFIG_FILE}",
                "transformers treats the weights as missing and initializes them at random: noise",
                f"a quantization_config in {CONFIG_FILE} (running it takes {method.upper()}'s own kernels)",
            )
        )

    def _look_at_code(self) -> None:
        if "auto_map" not in self._config:
            return
        del self._config["auto_map"]
        self._content.left_out |= {f"{kind}_minicpm.py" for kind in ("configuration", "modeling")}
        self.faults.append(
            Fault(
                "remote-code",
                f"{CONFIG_FILE} has an auto_map to the code of 2024",
                "transformers 5 with trust_remote_code=True: ImportError (is_torch_fx_available and others are gone)",
                "no auto_map: the classes of `import minicpm.models` (or convert --to granite, which needs none)",
            )
        )

    def _look_at_model_type(self) -> None:
        if "model_type" in self._config:
            return
        self._config["model_type"] = "minicpm"
        self.faults.append(
            Fault(
                "missing-model-type",
                f"{CONFIG_FILE} has no model_type, as the releases of 2024",
                "transformers 5: 'Unrecognized model ... Should have a `model_type` key in its config.json'",
                "model_type minicpm (transformers then needs `import minicpm.models`)",
            )
        )

    def _look_at_scales(self) -> None:
        missing = [key for key in MUP_KEYS if self._config.get(key) is None]
        if not missing:
            return
        self._config.update({key: CONSTANTS[key] for key in missing})
        self.faults.append(
            Fault(
                "missing-mup",
                f"{CONFIG_FILE} has no {', '.join(missing)}",
                SCALES_SYMPTOM,
                SCALES_CURE + "needs its own config.json",
            )
        )

    def _look_at_rope(self) -> None:
        rope = self._config.get("rope_parameters")
        if self._config.get("rope_theta") is not None or (isinstance(rope, dict) and "rope_theta" in rope):
            return
        self._config["rope_theta"] = ROPE_THETA
        self.faults.append(
            Fault(
                "missing-rope-theta",
                f"{CONFIG_FILE} has no rope_theta, as the releases of 2024",
                "right in transformers, whose default is MiniCPM's; mlx-lm takes 1e6 and answers worse the longer the "
                "text",
                ROPE_CURE,
            )
        )

    def _look_at_names(self) -> None:
        """Open the weights. Find files that cannot be read, and names under another tool's wrapper."""
        try:
            self._weights = hf.open_weights(self._folder)
            self._names = published_names(self._weights)
        except MiniCPMError as error:
            self.faults.append(unreadable(str(error)))
            return
        if (example := wrapped_example(self._weights)) is not None:
            self.faults.append(
                Fault(
                    "wrapped-names",
                    f"tensors are named {brief(example)} and so on, with the name of the tool that trained them",
                    "transformers and others take the weights as missing and start from random ones: noise",
                    f"the published names: minicpm convert {self.path} OUT --to hf writes them",
                    is_repairable=False,
                )
            )

    def _look_at_head(self) -> None:
        """Find a tie_word_embeddings that contradicts the weights or is missing; programs differ in its default."""
        names = self._names.keys()
        if not any(name.startswith("model.embed_tokens.") for name in names):
            return  # the folder has no weights, or they have the names of another program
        said = self._config.get("tie_word_embeddings")
        has_head = any(name.startswith("lm_head.") for name in names)
        # mlx-lm always writes a separate head, and its granite refuses one if the embeddings are tied.
        is_tied = not has_head or (said is not False and self.kind != "mlx" and self._head_repeats_embedding())
        if said is is_tied:
            return
        self._config["tie_word_embeddings"] = is_tied
        stored = "no lm_head is stored" if is_tied else "lm_head differs from the embedding"
        self.faults.append(
            Fault(
                "wrong-tie",
                f"{CONFIG_FILE} says {'nothing about tie_word_embeddings' if said is None else f'{brief(said)}'}, but "
                f"{stored}",
                "a head of random numbers (noise), or the embedding in its place (garbage); other programs refuse to "
                "load it"
                if said is not None
                else "mlx-lm and MLC default to false, transformers to true; the former look for a missing head",
                f"tie_word_embeddings {'true' if is_tied else 'false'}",
            )
        )

    def _head_repeats_embedding(self) -> bool:
        if HEAD not in self._names or EMBEDDING not in self._names:
            return False
        head, embedding = (self._weights[name].read(name) for name in (self._names[HEAD], self._names[EMBEDDING]))
        return head.dtype == embedding.dtype and head.buffer == embedding.buffer

    def _look_at_mlx(self) -> None:
        try:
            config = DecoderConfig.from_dict(self._config)
        except ModelError as error:
            self.faults.append(
                Fault("impossible-config", str(error), "no program loads it", "the config.json of the model", False)
            )
            return
        kept: dict[str, Any] = {
            key: self._config[key] for key in ("quantization", "quantization_config") if key in self._config
        }
        self._config = {**granite.write_config(config), **kept}
        self.faults.append(
            Fault(
                "mlx-minicpm",
                "an MLX folder with model_type minicpm",
                "mlx-lm's own minicpm does not load a tied head ('parameters not in model: lm_head.weight'; older ones "
                "left the division of the logits out), and defaults to a rotary base of 1e6: worse the longer the text",
                "model_type granite, which mlx-lm computes the way MiniCPM needs",
            )
        )


def _kind(raw: dict[str, Any]) -> str:
    quantization = raw.get("quantization_config")
    if isinstance(raw.get("quantization"), dict):
        return "mlx"
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return str(method) if method in ("gptq", "awq", "compressed-tensors") else "hf"
