"""What of a model folder may be read, by every room that reads one; and texts that are never half written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from minicpm.chat import CURRENT_TEMPLATE, template_for
from minicpm.errors import FormatError
from minicpm.files import MAX_JSON_ITEMS, naming_full_disk, read_bytes, read_json_object, write_text
from minicpm.tokenizer import Tokenizer

TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
NAMES = (*TOKENIZER_NAMES, "chat_template.jinja")


@pytest.fixture
def contents(golden: Path) -> dict[str, bytes]:
    """Valid content of every file that a tokenizer or a template is read from."""
    found = {name: (golden / "minicpm2b_tied" / name).read_bytes() for name in TOKENIZER_NAMES}
    return {**found, "chat_template.jinja": CURRENT_TEMPLATE.text.encode()}


def read_all(folder: Path) -> None:
    Tokenizer.from_folder(folder)
    template_for(folder)


def links_out(folder: Path, name: str, content: bytes) -> None:
    secret = folder.parent / "secret"
    secret.write_bytes(content)
    (folder / name).symlink_to(secret)


def climbs_out(folder: Path, name: str, content: bytes) -> None:
    (folder.parent / "secret").write_bytes(content)
    (folder / name).symlink_to("../secret")


def leads_to_nothing(folder: Path, name: str, content: bytes) -> None:
    (folder / name).symlink_to("nothing")


def leads_to_itself(folder: Path, name: str, content: bytes) -> None:
    (folder / name).symlink_to(name)


def is_a_pipe(folder: Path, name: str, content: bytes) -> None:
    os.mkfifo(folder / name)


def is_a_folder(folder: Path, name: str, content: bytes) -> None:
    (folder / name).mkdir()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (links_out, "symbolic link out of the model folder"),
        (climbs_out, "symbolic link out of the model folder"),
        (leads_to_nothing, "symbolic link to nothing"),
        (leads_to_itself, "loop of symbolic links"),
        (is_a_pipe, "not a regular file"),
        (is_a_folder, "not a regular file"),
    ],
)
def test_a_file_that_is_not_the_folders_own_is_never_read(
    tmp_path: Path,
    contents: dict[str, bytes],
    spoil: Callable[[Path, str, bytes], None],
    complaint: str,
    name: str,
):
    folder = tmp_path / "model"
    folder.mkdir()
    for other, content in contents.items():
        if name != "tokenizer.model" or other != "tokenizer.json":  # tokenizer.model is read where there is no other
            (folder / other).write_bytes(content)
    read_all(folder)
    (folder / name).unlink()
    spoil(folder, name, contents[name])
    with pytest.raises(FormatError, match=f"model/{name}: .*{complaint}"):
        read_all(folder)


def test_a_hugging_face_snapshot_is_read_through_its_links(tmp_path: Path, contents: dict[str, bytes]):
    model = tmp_path / "models--openbmb--MiniCPM"
    snapshot = model / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    for name, content in contents.items():
        (model / "blobs" / f"blob-of-{name}").write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(model / "blobs" / f"blob-of-{name}", snapshot))
    assert Tokenizer.from_folder(snapshot).decode(Tokenizer.from_folder(snapshot).encode("a b")) == "a b"
    assert template_for(snapshot).origin == "chat_template.jinja"


def test_a_json_of_a_few_megabytes_cannot_fill_the_memory(tmp_path: Path):
    path = tmp_path / "bomb.json"
    path.write_text('{"a":[' + "[]," * MAX_JSON_ITEMS + "0,0]}")
    with pytest.raises(FormatError, match=r"bomb\.json: about 3,000,001 JSON items"):
        read_json_object(path, 1 << 30)


def test_a_repeated_key_is_refused_on_request(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_text('{"a": {"b": 1, "b": 2}}')
    assert read_json_object(path, 100) == {"a": {"b": 2}}
    with pytest.raises(FormatError, match="a key appears twice"):
        read_json_object(path, 100, unique_keys=True)


def test_a_file_that_hides_its_size_is_cut_at_the_limit():
    path = Path("/proc/self/maps")
    if not path.exists() or path.stat().st_size:
        pytest.skip("this system has no file that says it is empty and is not")
    with pytest.raises(FormatError, match="more than 10 bytes"):
        read_bytes(path, 10)


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "new" / "note.json"
    write_text(path, json.dumps({"text": "用户"}))
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "x" * 100_000 + "\ud800")
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["note.json"]


def test_a_full_disk_is_named_by_the_file_that_did_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "note.json"
    with pytest.raises(OSError) as raised:
        write_text(path, "text")
    assert raised.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "filename"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "here"),
        (OSError(errno.EFBIG, "File too large"), "here"),
        (OSError(errno.ENOSPC, "No space left on device", "there"), "there"),
        (OSError(errno.EIO, "Input/output error"), None),  # of a file that was read, perhaps
    ],
)
def test_only_what_names_no_file_is_named(error: OSError, filename: str | None):
    with pytest.raises(OSError) as raised, naming_full_disk(Path("here")):
        raise error
    assert raised.value.filename == filename
