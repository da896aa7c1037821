"""The model built into the package: found without a name, listed, never removed, honestly missed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import minicpm
from minicpm import hub
from minicpm.errors import HubError, ModelError
from minicpm.hub import embedded
from minicpm.hub.names import nearest_names

PACKAGE = Path(minicpm.__file__).parent


@pytest.fixture
def built_in(server, golden: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy model in the built-in one's place, beside empty caches."""
    monkeypatch.setattr(embedded, "FOLDER", golden / "minicpm2b_tied")
    return golden / "minicpm2b_tied"


def test_no_name_means_the_folder_inside_the_package():
    assert hub.resolve(None) == PACKAGE / "assets" / "MiniCPM-nano"


@pytest.mark.parametrize("name", [None, "minicpm-nano", "MiniCPM-nano"])
def test_it_needs_no_network_no_cache_and_no_notice(built_in: Path, server, name):
    told: list[str] = []
    assert hub.resolve(name, tell=told.append) == built_in
    assert (server.requests, told) == ([], [])


def test_a_folder_of_that_name_goes_first(built_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("minicpm-nano").mkdir()
    assert hub.resolve("minicpm-nano") == Path("minicpm-nano")


def test_it_is_listed_first_with_its_size(built_in: Path):
    (model,) = hub.list_models()
    assert (model.name, model.source, model.path, model.is_complete) == ("minicpm-nano", "embedded", built_in, True)
    assert model.nbytes == sum(path.stat().st_size for path in built_in.iterdir())


def test_it_cannot_be_removed(built_in: Path):
    before = sorted(built_in.iterdir())
    with pytest.raises(HubError, match="built into the package and goes only with it"):
        hub.remove("minicpm-nano")
    assert sorted(built_in.iterdir()) == before


def test_there_is_nothing_to_pull(built_in: Path, server):
    told: list[str] = []
    assert hub.pull("minicpm-nano", tell=told.append) == built_in
    assert server.requests == []
    assert told == ["minicpm-nano is built into the package: there is nothing to download"]


def test_no_hub_is_asked_for_it():
    with pytest.raises(HubError, match="on no hub"):
        hub.parse_name("hf:minicpm-nano")


def test_a_near_miss_is_told_the_name():
    assert "minicpm-nano" in nearest_names("minicpm-nona")
    with pytest.raises(HubError, match="minicpm-nano"):
        hub.parse_name("nano")


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_an_incomplete_installation_says_what_is_missing_and_what_to_do(
    golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
):
    shutil.copytree(golden / "minicpm2b_tied", tmp_path / "nano", ignore=shutil.ignore_patterns(lost, "*golden*", "p*"))
    monkeypatch.setattr(embedded, "FOLDER", tmp_path / "nano")
    missing = "config.json" if lost == "config.json" else "the weights"
    with pytest.raises(ModelError, match=f"{missing} is missing in .*install minicpm again .*pass -m"):
        hub.resolve(None)


def test_a_zipped_package_says_that_it_must_be_unpacked(tmp_path: Path):
    archive = tmp_path / "minicpm.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in PACKAGE.rglob("*.py"):
            target.write(path, path.relative_to(PACKAGE.parent))
    code = f"import sys; sys.path.insert(0, {str(archive)!r}); from minicpm import hub; hub.resolve(None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"the built-in model cannot be read from inside {archive}; install the package unpacked" in done.stderr
