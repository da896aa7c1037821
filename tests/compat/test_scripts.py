"""`python -m minicpm.compat SCRIPT`: scripts of 2024 run byte for byte, and see plain Python around them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compat.conftest import ENVIRONMENT, Forks, write

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")


def run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, check=False)


@no_cuda
def test_everything_sent_to_cuda_stays_on_the_cpu(compat: Forks, model_folder: Path, tmp_path: Path):
    script = write(
        tmp_path / "script.py",
        f"""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        name = {str(model_folder)!r}
        tokenizer = AutoTokenizer.from_pretrained(name + '/', trust_remote_code=True)
        model = AutoModelForCausalLM.from_pretrained(name, torch_dtype=torch.float32, trust_remote_code=True)
        model = model.to('cuda').cuda().to(device=torch.device('cuda:0')).to(0).eval()
        inputs = tokenizer('hello', return_tensors='pt').to('cuda')
        assert inputs.input_ids.device.type == 'cpu'
        assert torch.zeros(2, device='cuda').cuda().to('cuda', torch.float16).dtype is torch.float16
        assert torch.tensor([1], device='cuda:0').cuda(non_blocking=True).device.type == 'cpu'
        assert torch.ones(1).to(torch.float64).dtype is torch.float64
        for device_map in ('cuda', 'cuda:0', {{'': 0}}, 'auto', 'cpu', None):
            loaded = AutoModelForCausalLM.from_pretrained(name, device_map=device_map, torch_dtype='auto')
            assert loaded.device.type == 'cpu', device_map
        torch.cuda.synchronize(); torch.cuda.empty_cache(); torch.cuda.manual_seed_all(0)
        print(model.generate(**inputs, max_new_tokens=3, do_sample=False).shape)
        """,
    )
    done = compat(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("torch.Size([1, ")
    assert done.stderr.count("minicpm.compat") == 1


@pytest.mark.parametrize("name", ["openbmb/MiniCPM-2B-dpo-bf16", "openbmb/MiniCPM-2B-dpo-bf16/"])
def test_a_name_of_the_release_is_found_in_the_cache(compat: Forks, published: Path, tmp_path: Path, name: str):
    script = f"""
        from transformers import AutoModelForCausalLM, AutoTokenizer
        print(AutoTokenizer.from_pretrained({name!r})('hi').input_ids[0])
        AutoModelForCausalLM.from_pretrained({name!r})
        """
    done = compat(write(tmp_path / "script.py", script))
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openbmb/MiniCPM-2B-sft-fp32/", "MiniCPM-2B-sft-fp32"),
        ("openbmb/MiniCPM-V/", "MiniCPM-V sees pictures"),
        ("openbmb/MiniCPM-2B-sft-int4", "minicpm quantize minicpm-2b-sft MiniCPM-2B-sft-int4"),
    ],
)
def test_a_model_that_cannot_be_had_is_named(compat: Forks, tmp_path: Path, name: str, message: str):
    code = f"from transformers import AutoModel\nAutoModel.from_pretrained({name!r}, trust_remote_code=True)"
    done = compat(write(tmp_path / "script.py", code))
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()  # without a traceback
    assert sentence.startswith("minicpm.compat: ") and message in sentence
    shown = compat(tmp_path / "script.py", MINICPM_TRACEBACK="1")
    assert "Traceback (most recent call last)" in shown.stderr and message in shown.stderr.splitlines()[-1]


def test_foreign_code_is_refused_by_name_even_when_trusted(compat: Forks, tmp_path: Path):
    folder = tmp_path / "stranger"
    folder.mkdir()
    auto_map = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    (folder / "config.json").write_text(json.dumps({"model_type": "stranger", "auto_map": auto_map}), encoding="utf-8")
    (folder / "evil.py").write_text("print('EXECUTED')", encoding="utf-8")
    script = write(
        tmp_path / "script.py",
        f"""
        from transformers import AutoConfig
        AutoConfig.from_pretrained({str(folder)!r}, trust_remote_code=True)
        """,
    )
    done = compat(script)
    assert done.returncode == 1
    assert "minicpm.compat never runs" in done.stderr
    assert "EXECUTED" not in done.stdout + done.stderr


# Plain Python

BEHAVIOURS = {
    "arguments and names": "import sys; print(sys.argv, __name__, __file__, sys.path[0], __spec__, __builtins__)",
    "exit code": "import sys; sys.exit(7)",
    "exit message": "import sys; sys.exit('that was it')",
    "exit none": "import sys; sys.exit()",
    "exception": "def f():\n    raise ValueError('boom')\n\n\nf()",
    "chained exception": "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise KeyError('x') from error",
    "syntax error": "x = 1\nprint(x",
    "main guard": "if __name__ == '__main__':\n    print('main')",
    "no future leaks": "def f(x: 1 + 1): pass\nprint(f.__annotations__)",
    "pickles its own classes": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__module__)",
    "finds its own neighbours": "import neighbour; print(neighbour.value)",
    "own excepthook": "import sys\nsys.excepthook = lambda *a: print('hooked', a[0].__name__)\n1 / 0",
    "encoding line": "# -*- coding: latin-1 -*-\nprint('ok')",
}


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_script_sees_what_plain_python_shows_it(compat: Forks, tmp_path: Path, name: str):
    write(tmp_path / "neighbour.py", "value = 42")
    script = write(tmp_path / "script.py", BEHAVIOURS[name])
    ours, plain = compat(script, "a", "--b"), run([sys.executable, script, "a", "--b"])
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)


def test_an_interrupted_script_dies_as_plain_python_does(compat: Forks, tmp_path: Path):
    script = write(tmp_path / "script.py", "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = compat(script)
    assert done.returncode == -signal.SIGINT
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert "compat" not in done.stderr


def test_a_missing_script_and_a_missing_argument_are_usage_errors(compat: Forks, tmp_path: Path):
    missing = compat(tmp_path / "none.py")
    assert missing.returncode == 2
    assert "none.py" in missing.stderr
    python = compat("python", tmp_path / "none.py")
    assert (python.returncode, python.stderr) == (2, missing.stderr)
    bare = compat()
    assert bare.returncode == 2
    assert "usage" in bare.stderr
