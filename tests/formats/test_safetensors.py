"""Our reader and writer of safetensors, with the safetensors library as the oracle in both directions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minicpm.errors import FormatError
from minicpm.formats.safetensors import SafetensorsFile, SafetensorsWriter, write_order
from minicpm.formats.tensor import TensorInfo

TENSORS = {
    "float64": torch.randn(3, 5, dtype=torch.float64),
    "float32": torch.randn(7, 2),
    "float16": torch.randn(5).half(),
    "bfloat16": torch.randn(3, 3).bfloat16(),
    "int64": torch.arange(4),
    "int32": torch.arange(3, dtype=torch.int32),
    "int16": torch.arange(5, dtype=torch.int16),
    "int8": torch.arange(3, dtype=torch.int8),
    "uint8": torch.arange(7, dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(2.5),
}


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def test_the_reader_sees_what_the_library_wrote(tmp_path: Path):
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert file.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        view = file.read(name)
        assert view.dtype == str(tensor.dtype).removeprefix("torch.")
        assert view.shape == tuple(tensor.shape)
        assert bytes(view.buffer) == raw_bytes(tensor)


def test_the_library_reads_what_the_writer_wrote(tmp_path: Path):
    infos = write_order(
        [TensorInfo(n, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in TENSORS.items()]
    )
    writer = SafetensorsWriter(tmp_path / "x.safetensors", infos)
    for info in infos:
        data = memoryview(raw_bytes(TENSORS[info.name]))
        writer.write(info.name, [data[:3], data[3:]])
    writer.close()
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    with safe_open(tmp_path / "x.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_written_tensors_start_at_multiples_of_their_item_size(tmp_path: Path):
    infos = write_order([TensorInfo("half", "float16", (3,)), TensorInfo("double", "float64", (1,))])
    writer = SafetensorsWriter(tmp_path / "x.safetensors", infos)
    for info in infos:
        writer.write(info.name, [memoryview(bytes(info.nbytes))])
    writer.close()
    content = (tmp_path / "x.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    assert start % 64 == 0
    assert header["double"]["data_offsets"][0] % 8 == 0


def test_a_tensor_at_an_odd_address_is_still_read(tmp_path: Path):
    header = json.dumps(
        {
            "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
        }
    ).encode()
    values = np.array([1.5, -2.0], "<f4")
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\7" + values.tobytes())
    view = SafetensorsFile(tmp_path / "x.safetensors").read("b")
    assert view.storage().flags.aligned
    assert view.float32().tolist() == [1.5, -2.0]


def test_a_view_stays_valid_after_the_file_is_closed(tmp_path: Path):
    save_file({"a": torch.arange(1000)}, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    view = file.read("a")
    file.close()
    assert torch.equal(torch.frombuffer(view.buffer, dtype=torch.int64), torch.arange(1000))
    with pytest.raises(ValueError, match="closed"):
        file.read("a")


def test_writing_into_a_view_does_not_change_the_file(tmp_path: Path):
    save_file({"a": torch.zeros(4)}, tmp_path / "x.safetensors")
    before = (tmp_path / "x.safetensors").read_bytes()
    torch.frombuffer(SafetensorsFile(tmp_path / "x.safetensors").read("a").buffer, dtype=torch.float32).fill_(7)
    assert (tmp_path / "x.safetensors").read_bytes() == before


def test_a_file_larger_than_memory_opens(tmp_path: Path):
    """A private mapping counts against memory unless it says that it need not (mapped.MAP_NORESERVE)."""
    nbytes = 1 << 40
    header = json.dumps({"a": {"dtype": "U8", "shape": [nbytes], "data_offsets": [0, nbytes]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    try:
        with path.open("r+b") as file:
            file.truncate(8 + len(header) + nbytes)  # a hole, no blocks
    except OSError:
        pytest.skip("this file system has no files of a terabyte")
    opened = SafetensorsFile(path)
    assert opened.read("a").buffer[nbytes - 1] == 0
    opened.close()


def test_reading_an_unknown_name_is_a_key_error(tmp_path: Path):
    save_file({"a": torch.zeros(4)}, tmp_path / "x.safetensors")
    with pytest.raises(KeyError):
        SafetensorsFile(tmp_path / "x.safetensors").read("b")


def test_a_directory_is_no_file(tmp_path: Path):
    with pytest.raises(FormatError, match="not a regular file"):
        SafetensorsFile(tmp_path)
