"""Our reader and writer of torch's zip checkpoints, with torch itself as the oracle in both directions."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from minicpm.errors import FormatError
from minicpm.formats import torch_bin
from minicpm.formats.tensor import TensorInfo
from minicpm.formats.torch_bin import TorchFile, TorchWriter

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def raw_bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""


def assert_reads_like_torch(path: Path) -> None:
    expected = torch.load(path, weights_only=True)
    file = TorchFile(path)
    assert list(file.tensors) == list(expected)
    for name, tensor in expected.items():
        view = file.read(name)
        assert view.dtype == str(tensor.dtype).removeprefix("torch.")
        assert view.shape == tuple(tensor.shape)
        assert bytes(view.buffer) == raw_bytes(tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_reads_as_torch_reads_it(tmp_path: Path, dtype: torch.dtype):
    torch.save({"a": torch.arange(12).reshape(3, 4).to(dtype)}, tmp_path / "x.bin")
    assert_reads_like_torch(tmp_path / "x.bin")


def shared() -> dict[str, torch.Tensor]:
    embedding = torch.randn(6, 4)
    return {"embedding": embedding, "head": embedding}


STATE_DICTS: dict[str, Mapping[str, torch.Tensor]] = {
    "a transposed tensor": {"a": torch.randn(3, 5).T},
    "a slice with an offset": {"a": torch.randn(10, 4)[3:7]},
    "every other column": {"a": torch.randn(4, 10)[:, 1::2]},
    "a permuted cube": {"a": torch.randn(2, 3, 4).permute(2, 0, 1)},
    "one storage under two names": shared(),
    "parameters": {"a": torch.nn.Parameter(torch.randn(3))},
    "an ordered dict": OrderedDict(b=torch.randn(2), a=torch.randn(3)),
    "a module's state dict with its metadata": torch.nn.Linear(3, 2).state_dict(),
    "a scalar": {"a": torch.tensor(3.5)},
    "an empty tensor": {"a": torch.zeros(0, 3)},
    "an axis of length one": {"a": torch.randn(4, 1, 3).transpose(0, 1)},
    "no tensor at all": {},
    "names beyond ASCII": {"层.weight": torch.randn(2)},
}


@pytest.mark.parametrize("case", STATE_DICTS)
def test_a_state_dict_reads_as_torch_reads_it(tmp_path: Path, case: str):
    torch.save(STATE_DICTS[case], tmp_path / "x.bin")
    assert_reads_like_torch(tmp_path / "x.bin")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle_is_read(tmp_path: Path, protocol: int):
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(2)}
    torch.save(tensors, tmp_path / "x.bin", pickle_protocol=protocol)
    file = TorchFile(tmp_path / "x.bin")
    assert {name: bytes(file.read(name).buffer) for name in tensors} == {n: raw_bytes(t) for n, t in tensors.items()}


def test_shared_storage_is_read_without_a_copy(tmp_path: Path):
    torch.save(shared(), tmp_path / "x.bin")
    file = TorchFile(tmp_path / "x.bin")
    one, other = file.read("embedding").storage(), file.read("head").storage()
    assert one.ctypes.data == other.ctypes.data


def written(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    infos = [TensorInfo(n, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in tensors.items()]
    writer = TorchWriter(path, infos)
    for name, tensor in tensors.items():
        data = memoryview(raw_bytes(tensor))
        writer.write(name, [data[:5], data[5:]])
    writer.close()


@pytest.mark.parametrize("mmap", [False, True], ids=["read", "mapped"])
def test_torch_loads_what_the_writer_wrote(tmp_path: Path, mmap: bool):
    tensors = {str(dtype): torch.arange(12).reshape(3, 4).to(dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(1.5), "层": torch.randn(70_000)}
    written(tmp_path / "pytorch_model.bin", tensors)
    loaded = torch.load(tmp_path / "pytorch_model.bin", weights_only=True, mmap=mmap)
    assert isinstance(loaded, OrderedDict)
    assert list(loaded) == list(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_the_reader_reads_what_the_writer_wrote(tmp_path: Path):
    written(tmp_path / "x.pt", {"a": torch.randn(3, 4), "b": torch.randn(2).bfloat16()})
    assert_reads_like_torch(tmp_path / "x.pt")


def test_written_storages_start_at_multiples_of_64(tmp_path: Path):
    written(tmp_path / "x.pt", {f"layer.{i}": torch.randn(i + 1) for i in range(12)})
    file = TorchFile(tmp_path / "x.pt")
    # The file is mapped at a page's start, so addresses tell offsets.
    assert all(file.read(name).storage().ctypes.data % 64 == 0 for name in file.tensors)


def test_a_legacy_file_says_what_to_do(tmp_path: Path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(FormatError, match=r"before 1\.6"):
        TorchFile(tmp_path / "x.bin")


def test_a_torchscript_archive_is_refused(tmp_path: Path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        archive.writestr("m/constants.pkl", b"\x80\x02).")
    (tmp_path / "x.bin").write_bytes(buffer.getvalue())
    with pytest.raises(FormatError, match="TorchScript"):
        TorchFile(tmp_path / "x.bin")


@pytest.mark.parametrize(
    "content",
    [{"state_dict": {"a": torch.zeros(2)}}, [torch.zeros(2)], {"a": torch.zeros(2), "step": 7}, torch.zeros(2)],
    ids=["nested", "a list", "a number inside", "a bare tensor"],
)
def test_what_is_not_a_flat_state_dict_is_named(tmp_path: Path, content: object):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(FormatError, match="expected a dict of tensors by name"):
        TorchFile(tmp_path / "x.bin")


def test_a_big_archive_with_64_bit_offsets_is_read(tmp_path: Path):
    """The same archive with its directory written in zip64, as torch writes files above 4 GiB."""
    torch.save({"a": torch.arange(6)}, tmp_path / "x.bin")
    content = (tmp_path / "x.bin").read_bytes()
    end = content.rfind(b"PK\x05\x06")
    count = int.from_bytes(content[end + 10 : end + 12], "little")
    size, begin = (int.from_bytes(content[end + at : end + at + 4], "little") for at in (12, 16))
    record = b"PK\x06\x06" + (44).to_bytes(8, "little") + b"\x2d\0\x2d\0" + bytes(8)
    record += b"".join(number.to_bytes(8, "little") for number in (count, count, size, begin))
    locator = b"PK\x06\x07" + bytes(4) + end.to_bytes(8, "little") + (1).to_bytes(4, "little")
    final = b"PK\x05\x06" + bytes(4) + b"\xff" * 12 + bytes(2)
    (tmp_path / "x.bin").write_bytes(content[:end] + record + locator + final)
    assert_reads_like_torch(tmp_path / "x.bin")


@pytest.mark.parametrize("mmap", [False, True], ids=["read", "mapped"])
def test_entries_and_offsets_beyond_32_bits_are_written_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mmap: bool
):
    """The limits of zip are lowered, so that a small file is written as one of many gigabytes would be."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    monkeypatch.setattr(torch_bin, "LARGE_ENTRY_BYTES", 900)
    tensors = {"small": torch.randn(3), "large": torch.randn(50, 40), "after": torch.randn(7).bfloat16()}
    written(tmp_path / "x.bin", tensors)
    monkeypatch.undo()
    assert_reads_like_torch(tmp_path / "x.bin")
    loaded = torch.load(tmp_path / "x.bin", weights_only=True, mmap=mmap)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    file = TorchFile(tmp_path / "x.bin")
    assert all(file.read(name).storage().ctypes.data % 64 == 0 for name in file.tensors)
