"""The known faults of published MiniCPM GGUF files, found in their metadata, and a copy without them.

Weights are copied as they are. Rows of q and k in the wrong order are not found: nothing in a file tells of them. Norms
of rows that are rotated together were tried on MiniCPM-nano and are no more alike than others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from minicpm.chat import CURRENT_TEMPLATE
from minicpm.errors import FormatError, ModelError, brief
from minicpm.formats.convert import require_disk
from minicpm.formats.faults import (
    DIM_MODEL_BASE,
    ROPE_THETA,
    SCALE_DEPTH,
    SCALE_EMB,
    Examination,
    Fault,
    constants_of_2024,
)
from minicpm.formats.folder import new_file
from minicpm.formats.gguf import Field, GgufFile, GgufTensor, GgufWriter, ValueType, has_magic
from minicpm.formats.gguf_model import ARCHITECTURE, LLAMA, SCALE_KEYS, stored_name
from minicpm.formats.gguf_tokenizer import SCORES, TEMPLATE, TOKENS, TYPES
from minicpm.formats.llama import EMBEDDING, HEAD
from minicpm.tokenizer import PieceType

_ALIGNMENT_KEY = "general.alignment"


class GgufExamination(Examination):
    """A GGUF file's faults; raises FormatError where it cannot be read at all, ModelError where it is no MiniCPM."""

    def __init__(self, path: Path):
        super().__init__(path, "gguf")
        self._file = GgufFile(path)
        try:
            self._fields = self._file.fields()
            self._dropped: set[str] = set()
            self._architecture = self._file.metadata.get("general.architecture")
            if self._architecture not in (ARCHITECTURE, LLAMA):
                raise ModelError(f"{path}: its architecture is {brief(self._architecture)}; expected 'minicpm'")
            self._look()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    def write_repaired(self, destination: Path, *, overwrite: bool = False) -> None:
        _check_destination(destination, self.path, overwrite)
        self._fields.pop(_ALIGNMENT_KEY, None)  # the copy has the format's own
        tensors = [replace(t, start=0) for t in self._file.tensors.values() if t.name not in self._dropped]
        require_disk(destination, sum(tensor.nbytes for tensor in tensors), [])
        with new_file(destination) as partial:
            writer = GgufWriter(partial, list(self._fields.values()), tensors)
            try:
                for tensor in tensors:
                    writer.write(tensor.name, self._content(tensor))
                writer.close()
            except BaseException:
                writer.abandon()
                raise

    def _content(self, tensor: GgufTensor) -> Iterator[memoryview]:
        view, step = self._file.view(tensor.name), 1 << 22
        for start in range(0, len(view), step):
            yield view[start : start + step]
        self._file.release(tensor.name)

    # --- looking -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._look_at_scales()
        self._look_at_scores()
        self._look_at_rope()
        self._look_at_head()
        self._look_at_template()

    def _key(self, name: str) -> str:
        return f"{self._architecture}.{name}"

    def _number(self, name: str) -> int:
        value = self._file.metadata.get(self._key(name))
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise FormatError(self.path, f"{self._key(name)} is {brief(value)}, expected a whole number above 0")
        return value

    def _put(self, key: str, kind: ValueType, value: float | str) -> None:
        self._fields[key] = Field(key, kind, value)

    def _look_at_scales(self) -> None:
        missing = [key for key in SCALE_KEYS if self._key(key) not in self._fields]
        if self._architecture != ARCHITECTURE or not missing:
            return
        constants = constants_of_2024(self._number("block_count"), self._number("embedding_length"))
        for key in missing:
            self._put(self._key(key), ValueType.FLOAT32, constants[key])
        self.faults.append(
            Fault(
                "missing-mup",
                f"{', '.join(self._key(key) for key in missing)} missing, as in files of early 2024",
                "greedy answers look right, but sampling gives confused text and perplexity is absurd: today's "
                "llama.cpp takes a default it then divides by, and logits of MiniCPM-2B come out 81 times too large",
                f"the constants of MiniCPM-1B and 2B of 2024 (scale_emb {SCALE_EMB}, scale_depth {SCALE_DEPTH}, "
                f"dim_model_base {DIM_MODEL_BASE}); a model trained with others must be converted from its folder",
            )
        )

    def _look_at_scores(self) -> None:
        scores, types, tokens = (self._fields.get(key) for key in (SCORES, TYPES, TOKENS))
        if tokens is None or types is None:
            return
        kinds = [int(kind) for kind in cast("list[int]", types.value)]
        old = [0.0] * len(kinds) if scores is None else [float(one) for one in cast("list[float]", scores.value)]
        normal = [index for index, kind in enumerate(kinds) if kind == PieceType.NORMAL]
        if len(old) != len(kinds) or len(normal) < 2 or len({old[index] for index in normal}) > 1:
            return
        # SentencePiece numbers the pieces of a BPE model in the order of their merges, and scores them so.
        for rank, index in enumerate(normal):
            old[index] = -float(rank)
        self._fields[SCORES] = Field(SCORES, ValueType.ARRAY, old, ValueType.FLOAT32)
        self.faults.append(
            Fault(
                "flat-scores",
                f"all {len(normal):,} normal pieces of the tokenizer have one score (made from tokenizer.json)",
                "answers are worse than they should be, above all in Chinese: llama.cpp merges by score, so texts are "
                "split otherwise than the model learned",
                "scores in the order of the pieces, which is the order of SentencePiece's merges",
            )
        )

    def _look_at_rope(self) -> None:
        if self._key("rope.freq_base") in self._fields:
            return
        self._put(self._key("rope.freq_base"), ValueType.FLOAT32, ROPE_THETA)
        self.faults.append(
            Fault(
                "missing-rope-theta",
                f"{self._key('rope.freq_base')} is missing",
                "right in llama.cpp, whose default is MiniCPM's; programs with another default (1e6) answer worse the "
                "longer the text",
                f"{ROPE_THETA:g}, the base of every MiniCPM-1B and 2B of 2024 but the 128k one",
            )
        )

    def _look_at_head(self) -> None:
        head, embedding = (self._file.tensors.get(stored_name(name)) for name in (HEAD, EMBEDDING))
        if head is None or embedding is None or head.type is not embedding.type or head.shape != embedding.shape:
            return
        one, other = (np.frombuffer(self._file.view(tensor.name), np.uint8) for tensor in (head, embedding))
        if not np.array_equal(one, other):
            return
        self._dropped.add(head.name)
        self.faults.append(
            Fault(
                "repeated-head",
                f"{head.name} repeats {embedding.name} byte for byte",
                f"the file and the memory it takes are {head.nbytes:,} bytes larger than needed",
                "the head left out: programs then use the embedding, as the model was trained",
            )
        )

    def _look_at_template(self) -> None:
        if TEMPLATE in self._fields:
            return
        self._put(TEMPLATE, ValueType.STRING, CURRENT_TEMPLATE.text)
        self.faults.append(
            Fault(
                "missing-template",
                f"{TEMPLATE} is missing",
                "chat programs put <|im_start|> or the like around a question, which the model never saw: it rambles, "
                "or does not stop",
                "MiniCPM's own template (<用户>question<AI>)",
            )
        )


def _check_destination(destination: Path, source: Path, overwrite: bool) -> None:
    if destination.suffix != ".gguf":
        raise ValueError(f"{destination}: the repaired copy is a file; give it a name that ends in .gguf")
    if not destination.exists() and not destination.is_symlink():
        return
    if not destination.is_file():
        raise ValueError(f"{destination}: exists and is not a file; choose another destination")
    if destination.samefile(source):
        raise ValueError(f"{destination}: is the file itself; a repaired copy needs a name of its own")
    if not overwrite:
        raise ValueError(f"{destination}: already exists; choose another destination or pass --force to replace it")
    if not has_magic(destination):
        raise ValueError(f"{destination}: --force replaces GGUF files only, and this is not one; remove it yourself")
