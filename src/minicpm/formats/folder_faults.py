"""The known faults of published MiniCPM folders, plain, MLX, GPTQ or AWQ, and a copy without them.

Only config.json and tokenizer_config.json are repaired; weights are copied as they are, and read no further than their
headers, but for a head that must repeat the embedding.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from minicpm.chat import CURRENT_TEMPLATE
from minicpm.errors import MiniCPMError, ModelError, brief
from minicpm.files import write_text
from minicpm.formats import granite, hf
from minicpm.formats.config import MUP_KEYS, DecoderConfig, architecture_names, read_config_json
from minicpm.formats.faults import DIM_MODEL_BASE, ROPE_THETA, SCALE_DEPTH, SCALE_EMB, Examination, Fault
from minicpm.formats.folder import ModelFolder, copy_file, new_folder
from minicpm.formats.llama import EMBEDDING, HEAD
from minicpm.formats.mapped import TensorFile
from minicpm.tokenizer import read_tokenizer_config

CONSTANTS = dict(zip(MUP_KEYS, (SCALE_EMB, SCALE_DEPTH, DIM_MODEL_BASE)))
CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
FAMILY = ("minicpm", "granite", "llama")


class FolderExamination(Examination):
    """A folder's faults; raises FormatError for files that cannot be read, ModelError for another family."""

    def __init__(self, path: Path):
        folder = ModelFolder(path)
        self._folder = folder
        self._config = read_config_json(folder.file(CONFIG))
        super().__init__(path, _kind(self._config))
        self._tokenizer_config = read_tokenizer_config(path)
        self._is_minicpm = self._config.get("model_type") == "minicpm" or (
            "MiniCPMForCausalLM" in architecture_names(self._config) and "model_type" not in self._config
        )
        if not self._is_minicpm and self._config.get("model_type") not in FAMILY:
            raise ModelError(f"{path}: its model_type is {brief(self._config.get('model_type'))}; expected 'minicpm'")
        self._weights: dict[str, TensorFile] = {}
        self._look()

    def close(self) -> None:
        for file in set(self._weights.values()):
            file.close()

    def write_repaired(self, destination: Path, *, overwrite: bool = False) -> None:
        if destination.exists() and destination.samefile(self.path):
            raise ValueError(f"{destination}: is the folder itself; a repaired copy needs a name of its own")
        with new_folder(destination, overwrite) as partial:
            for entry in sorted(self.path.iterdir()):
                if entry.is_file() and entry.name not in (CONFIG, TOKENIZER_CONFIG):
                    copy_file(self._folder.file(entry.name), partial / entry.name)
            _write(partial / CONFIG, self._config)
            if self._tokenizer_config:
                _write(partial / TOKENIZER_CONFIG, self._tokenizer_config)

    # --- looking -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        if self._is_minicpm:
            self._look_at_model_type()
            self._look_at_scales()
            self._look_at_rope()
        self._look_at_head()
        if self._is_minicpm and self.kind == "mlx":
            self._look_at_mlx()
        self._look_at_template()

    def _look_at_model_type(self) -> None:
        if "model_type" in self._config:
            return
        self._config["model_type"] = "minicpm"
        self.faults.append(
            Fault(
                "missing-model-type",
                f"{CONFIG} has no model_type, as the releases of 2024",
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
                f"{CONFIG} has no {', '.join(missing)}",
                "garbage from the first word on: without its constants MiniCPM is another function",
                f"the constants of MiniCPM-1B and 2B of 2024 (scale_emb {SCALE_EMB}, scale_depth {SCALE_DEPTH}, "
                f"dim_model_base {DIM_MODEL_BASE}); a model trained with others needs its own config.json",
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
                f"{CONFIG} has no rope_theta, as the releases of 2024",
                "right in transformers, whose default is MiniCPM's; mlx-lm takes 1e6 and answers worse the longer the "
                "text",
                f"{ROPE_THETA:g}, the base of every MiniCPM-1B and 2B of 2024 but the 128k one",
            )
        )

    def _look_at_head(self) -> None:
        """A tie that the weights contradict; a default that programs do not share is one, too."""
        with suppress(MiniCPMError):
            self._weights = hf.open_weights(self._folder)
        names = self._weights.keys()
        if not any(name.startswith("model.embed_tokens.") for name in names):
            return  # no weights beside it, or under names of another program
        said = self._config.get("tie_word_embeddings")
        is_tied = not any(name.startswith("lm_head.") for name in names) or (
            said is not False and self._head_repeats_embedding()
        )
        if said is is_tied:
            return
        self._config["tie_word_embeddings"] = is_tied
        stored = "no lm_head is stored" if is_tied else "lm_head is another matrix than the embedding"
        self.faults.append(
            Fault(
                "wrong-tie",
                f"{CONFIG} says {'nothing about tie_word_embeddings' if said is None else f'{brief(said)}'}, but "
                f"{stored}",
                "a head of random numbers (noise), or the embedding in its place (garbage); other programs refuse to "
                "load it"
                if said is not None
                else "mlx-lm and MLC take false where transformers takes true, and look for a head that is not there",
                f"tie_word_embeddings {'true' if is_tied else 'false'}",
            )
        )

    def _head_repeats_embedding(self) -> bool:
        if HEAD not in self._weights or EMBEDDING not in self._weights:
            return False
        head, embedding = (self._weights[name].read(name) for name in (HEAD, EMBEDDING))
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
                "mlx-lm's own minicpm leaves the division of the logits out where the head is tied: sampling gives "
                "confused text",
                "model_type granite, which mlx-lm computes as MiniCPM is meant",
            )
        )

    def _look_at_template(self) -> None:
        if self._tokenizer_config.get("chat_template") or self._folder.has("chat_template.jinja"):
            return
        if not (self._tokenizer_config or self._folder.has("tokenizer.model") or self._folder.has("tokenizer.json")):
            self.faults.append(
                Fault(
                    "missing-tokenizer",
                    "no tokenizer.model, tokenizer.json or tokenizer_config.json",
                    "no program can chat with it",
                    "the tokenizer's files of the model it was made from, beside the weights",
                    is_repairable=False,
                )
            )
            return
        self._tokenizer_config["chat_template"] = CURRENT_TEMPLATE.text
        self.faults.append(
            Fault(
                "missing-template",
                f"neither {TOKENIZER_CONFIG} nor chat_template.jinja has a chat template",
                "transformers' apply_chat_template fails; servers put <|im_start|> or the like around a question, "
                "which the model never saw",
                "MiniCPM's own template (<用户>question<AI>)",
            )
        )


def _kind(raw: dict[str, Any]) -> str:
    quantization = raw.get("quantization_config")
    if isinstance(raw.get("quantization"), dict):
        return "mlx"
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return str(method) if method in ("gptq", "awq", "compressed-tensors") else "hf"


def _write(path: Path, raw: dict[str, Any]) -> None:
    write_text(path, json.dumps(raw, indent=2, ensure_ascii=False) + "\n")
