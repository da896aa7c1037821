"""The Auto classes: MiniCPM's ids from AutoTokenizer, and no code from a model's folder, whatever the caller trusts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

import minicpm.models
from minicpm.errors import FormatError, ModelError

Folder = Callable[..., Path]
OFFICIAL_IDS = {
    "<用户>Which city is the capital of China?<AI>": [
        1, 1786, 4194, 95388, 28780, 4342, 1410, 1358, 8107, 1379, 6213, 74, 95396, 10850, 95388,
    ],
    "<用户>你好<AI> 你好！有什么可以帮你？<用户>写一首诗<AI>": [
        1, 1786, 4194, 95388, 23523, 95396, 10850, 95388, 95320, 23523, 67, 8307, 1802, 27255, 68, 95396, 4194, 95388,
        96027, 33289, 96291, 95396, 10850, 95388,
    ],
    "<用户>你好<AI>": [1, 1786, 4194, 95388, 23523, 95396, 10850, 95388],
    "你好，世界！": [1, 95320, 23523, 65, 2925, 67],
    "  spaced  text\n": [1, 1345, 61009, 1345, 2384, 5],
}  # fmt: skip


@pytest.fixture(scope="module")
def official(real_tokenizer: Path, real_configs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official tokenizer files beside the official config.json."""
    folder = tmp_path_factory.mktemp("official")
    for file in real_tokenizer.iterdir():
        shutil.copy(file, folder)
    shutil.copy(real_configs / "MiniCPM-2B-sft-bf16" / "config.json", folder)
    return folder


# The tokenizer


@pytest.mark.parametrize("flags", [{}, {"use_fast": False}, {"use_fast": True, "trust_remote_code": True}], ids=str)
def test_auto_tokenizer_gives_the_official_ids(official: Path, flags: dict[str, Any]):
    tokenizer = AutoTokenizer.from_pretrained(official, **flags)
    for text, ids in OFFICIAL_IDS.items():
        assert tokenizer(text).input_ids == ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_auto_tokenizer_gives_the_golden_ids(golden: Path):
    tokenizer = AutoTokenizer.from_pretrained(golden / "minicpm2b_tied")
    for vector in json.loads((golden / "chat" / "tokenizer_vectors.json").read_text(encoding="utf-8")):
        assert tokenizer(vector["text"]).input_ids == vector["ids_fast_with_bos"]


def test_a_loaded_config_may_stand_for_the_file(official: Path):
    tokenizer = AutoTokenizer.from_pretrained(official, config=AutoConfig.from_pretrained(official))
    assert tokenizer("  spaced  text\n").input_ids == OFFICIAL_IDS["  spaced  text\n"]


@pytest.mark.parametrize("with_config", [True, False])
def test_a_saved_tokenizer_keeps_its_ids_also_where_we_are_not_installed(
    official: Path, tmp_path: Path, with_config: bool
):
    AutoTokenizer.from_pretrained(official).save_pretrained(tmp_path)
    if with_config:
        shutil.copy(official / "config.json", tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text, ids in OFFICIAL_IDS.items():
        assert again(text).input_ids == ids
    assert type(again) is PreTrainedTokenizerFast  # not a class of ours, so anybody can load it


def test_both_published_templates_work(official: Path, tmp_path: Path):
    messages = [
        {"role": "user", "content": " a "},
        {"role": "assistant", "content": " b "},
        {"role": "user", "content": "c"},
    ]
    current = AutoTokenizer.from_pretrained(official)
    assert current.apply_chat_template(messages, tokenize=False) == "<用户> a <AI> b <用户>c<AI>"
    for file in official.iterdir():
        shutil.copy(file, tmp_path)
    shutil.copy(tmp_path / "tokenizer_config.feb2024.json", tmp_path / "tokenizer_config.json")
    february = AutoTokenizer.from_pretrained(tmp_path)
    assert february.apply_chat_template(messages, tokenize=False) == "<用户>a<AI>b<用户>c<AI>"
    assert february("  spaced  text\n").input_ids == OFFICIAL_IDS["  spaced  text\n"]


def test_a_folder_without_tokenizer_json_is_named(tied_folder: Folder):
    folder = tied_folder()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        AutoTokenizer.from_pretrained(folder)


# Foreign code

TRIPWIRE = "from pathlib import Path\nPath(__file__).with_name('EXECUTED').touch()\nPath({touch!r}).touch()\n"


@pytest.fixture
def trapped_folder(tied_folder: Folder, tmp_path: Path) -> Path:
    """A model folder in which every file that a library might run leaves a trace."""
    folder = tied_folder(
        auto_map={
            "AutoConfig": "configuration_minicpm.MiniCPMConfig",
            "AutoModel": "modeling_minicpm.MiniCPMModel",
            "AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM",
            "AutoModelForSequenceClassification": "modeling_minicpm.MiniCPMForSequenceClassification",
            "AutoTokenizer": ["tokenization_minicpm.T", "tokenization_minicpm.T"],
        },
        _attn_implementation_internal="evil/kernels",
        _attn_implementation="evil/kernels",
    )
    code = TRIPWIRE.format(touch=str(tmp_path / "EXECUTED"))
    (folder / "custom_generate").mkdir()
    for name in ("configuration_minicpm", "modeling_minicpm", "tokenization_minicpm", "custom_generate/generate"):
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer_config["auto_map"] = {"AutoTokenizer": ["tokenization_minicpm.T", "tokenization_minicpm.T"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("has_model_type", [True, False])
@pytest.mark.parametrize("trust", [True, False, None])
def test_code_in_the_folder_never_runs(trapped_folder: Path, tmp_path: Path, trust: bool | None, has_model_type: bool):
    if not has_model_type:
        raw = json.loads((trapped_folder / "config.json").read_text(encoding="utf-8"))
        del raw["model_type"]
        (trapped_folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    kwargs = {} if trust is None else {"trust_remote_code": trust}
    config = AutoConfig.from_pretrained(trapped_folder, **kwargs)
    tokenizer = AutoTokenizer.from_pretrained(trapped_folder, **kwargs)
    model = AutoModelForCausalLM.from_pretrained(trapped_folder, **kwargs)
    assert type(model) is minicpm.models.MiniCPMForCausalLM
    assert type(AutoModel.from_pretrained(trapped_folder, **kwargs)) is minicpm.models.MiniCPMModel
    classifier = AutoModelForSequenceClassification.from_pretrained(trapped_folder, **kwargs)
    assert type(classifier) is minicpm.models.MiniCPMForSequenceClassification
    minicpm.models.MiniCPMForCausalLM.from_pretrained(trapped_folder, **kwargs)
    AutoModelForCausalLM.from_config(config, **kwargs)
    model.generate(torch.tensor([[1, 2]]), max_new_tokens=2, do_sample=False)
    tokenizer.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "EXECUTED").exists()
    assert not list((tmp_path / "saved").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", ["a"], None], ids=str)
def test_a_shard_outside_the_folder_is_refused(golden: Path, tmp_path: Path, name: object):
    folder = tmp_path / "model"
    shutil.copytree(golden / "minicpm2b_untied_sharded", folder)
    index_path = folder / "model.safetensors.index.json"
    index = json.loads(index_path.read_text(encoding="utf-8"))
    tensor, shard = next(iter(index["weight_map"].items()))
    shutil.copy(folder / shard, tmp_path / "outside.safetensors")
    index["weight_map"][tensor] = name
    index_path.write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(FormatError):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_tokenizer_file_elsewhere_is_not_read(tied_folder: Folder, tmp_path: Path):
    folder = tied_folder()
    expected = AutoTokenizer.from_pretrained(folder)("hello").input_ids
    (tmp_path / "elsewhere.json").write_text("{}", encoding="utf-8")
    raw = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    raw |= {"tokenizer_file": str(tmp_path / "elsewhere.json"), "vocab_file": "/etc/passwd"}
    (folder / "tokenizer_config.json").write_text(json.dumps(raw), encoding="utf-8")
    assert AutoTokenizer.from_pretrained(folder)("hello").input_ids == expected


# Registration


def test_registering_again_changes_nothing():
    before = AutoTokenizer.from_pretrained, AutoConfig.from_pretrained
    minicpm.models.register()
    minicpm.models.register()
    assert (AutoTokenizer.from_pretrained, AutoConfig.from_pretrained) == before


def test_importing_twice_in_one_process_as_vllm_plugins_do_is_harmless():
    code = (
        "import sys, minicpm.models; minicpm.models.register()\n"
        "for name in [n for n in sys.modules if n.startswith('minicpm')]: del sys.modules[name]\n"
        "from importlib.metadata import entry_points\n"
        "(point,) = entry_points(group='vllm.general_plugins', name='minicpm')\n"
        "point.load()(); point.load()()\n"
        "from transformers import AutoConfig\n"
        "config = AutoConfig.for_model('minicpm')\n"
        "import pickle; assert type(pickle.loads(pickle.dumps(config))) is type(config)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_save_and_load_is_equal(golden: Path, tmp_path: Path):
    for name in ("minicpm2b_tied", "minicpm2b_untied_sharded"):
        model = AutoModelForCausalLM.from_pretrained(golden / name)
        model.save_pretrained(tmp_path / name)
        again, info = AutoModelForCausalLM.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info.values()), info
        state = again.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
        ours = minicpm.models.load_model(tmp_path / name).state_dict()
        assert all(torch.equal(ours[key], value) for key, value in state.items())
