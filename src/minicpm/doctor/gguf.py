"""The known faults of published MiniCPM GGUF files, found in their metadata, and a copy without them.

Weights are copied unchanged, except rows of q and k in the wrong order. The order cannot be read from a file: on
MiniCPM-nano, norms of rows that rotate together are no more similar than others. So doctor/measured.py runs the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minicpm.doctor.faults import (
    ROPE_CURE,
    ROPE_THETA,
    SCALES_CURE,
    Correction,
    Examination,
    Fault,
    constants_of_2024,
)
from minicpm.doctor.gguf_tokenizer import look_at_tokenizer
from minicpm.errors import FormatError, ModelError, brief
from minicpm.export.destination import new_file, require_disk
from minicpm.export.gguf import check_file_destination
from minicpm.formats import llama
from minicpm.formats.gguf import Field, GgufFile, GgufTensor, GgufWriter, ValueType
from minicpm.formats.gguf_model import ARCHITECTURE, LLAMA, SCALE_KEYS, model_fields, rows_to_store, stored_name
from minicpm.formats.llama import EMBEDDING, HEAD
from minicpm.formats.sequential import writing

_ALIGNMENT_KEY = "general.alignment"


class GgufExamination(Examination):
    """A GGUF file's faults. Raises FormatError if it cannot be read at all, ModelError if it is not a MiniCPM."""

    def __init__(self, path: Path):
        super().__init__(path, "gguf")
        self._file = GgufFile(path)
        try:
            self._fields = self._file.fields()
            self._dropped: set[str] = set()
            self._rows: dict[str, npt.NDArray[np.int64]] = {}  # by tensor, the row order of the copy
            self._architecture = self._file.metadata.get("general.architecture")
            if self._architecture not in (ARCHITECTURE, LLAMA):
                raise ModelError(f"{path}: its architecture is {brief(self._architecture)}; expected 'minicpm'")
            self._look()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        self._file.close()

    @property
    def can_reorder_rows(self) -> bool:
        return True

    def write_repaired(self, destination: Path, *, overwrite: bool = False) -> None:
        if destination.exists() and destination.samefile(self.path):
            raise ValueError(f"{destination}: is the file itself; a repaired copy needs a name of its own")
        check_file_destination(destination, overwrite)
        self._fields.pop(_ALIGNMENT_KEY, None)  # the copy has the format's default alignment
        tensors = [replace(t, start=0) for t in self._file.tensors.values() if t.name not in self._dropped]
        require_disk(destination, sum(tensor.nbytes for tensor in tensors))
        with (
            new_file(destination) as partial,
            writing(GgufWriter(partial, list(self._fields.values()), tensors)) as writer,
        ):
            for tensor in tensors:
                writer.write(tensor.name, self._content(tensor))

    def _content(self, tensor: GgufTensor) -> Iterator[memoryview]:
        view, step = self._file.view(tensor.name), 1 << 22
        order = self._rows.get(tensor.name)
        if order is not None:
            view = np.frombuffer(view, np.uint8).reshape(len(order), -1)[order].data.cast("B")
        for start in range(0, len(view), step):
            yield view[start : start + step]
        self._file.release(tensor.name)

    # --- examining -----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        self._look_at_scales()
        self._look_at_rope()
        self._look_at_head()
        self.faults += look_at_tokenizer(self._fields)

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
                "llama.cpp divides by a default, and logits of MiniCPM-2B come out 81 times too large",
                SCALES_CURE + "must be converted from its folder",
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
                ROPE_CURE,
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

    # --- measured faults -----------------------------------------------------------------------------------------

    def correct(self, correction: Correction) -> None:
        config = correction.config
        if correction.reorders_rows:
            orders = {stored_name(name): rows_to_store(config, name) for name in config.parameter_shapes()}
            self._rows = {name: order for name, order in orders.items() if order is not None}
        self._put(self._key("rope.freq_base"), ValueType.FLOAT32, config.rope_theta)
        if llama.unit_scales(config) == config:
            return  # the scales are multiplied into the weights
        if self._architecture == LLAMA:
            self._rename_architecture()
        for found in model_fields(config):
            if found.key.endswith(SCALE_KEYS):
                self._fields[found.key] = found

    def _rename_architecture(self) -> None:
        """`llama` becomes `minicpm`, in every key as well."""
        old, new = f"{self._architecture}.", f"{ARCHITECTURE}."
        renamed = {
            (new + key.removeprefix(old) if key.startswith(old) else key): field for key, field in self._fields.items()
        }
        self._fields = {key: replace(field, key=key) for key, field in renamed.items()}
        self._architecture = ARCHITECTURE
        self._put("general.architecture", ValueType.STRING, ARCHITECTURE)
