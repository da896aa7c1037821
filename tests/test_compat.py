"""`python -m minicpm.compat`: scripts of 2024 run byte for byte, and see plain Python around them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from interrupts import default_interrupts

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
NOTICE = "minicpm.compat: this machine has no CUDA device, so the script runs on the CPU"
no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")

NAME = "openbmb/MiniCPM-2B-dpo-bf16"
# The release's README, 2024-02-04, byte for byte where {path} is NAME.
QUICK_START = """\
from transformers import AutoModelForCausalLM, AutoTokenizer
import torch
torch.manual_seed(0)

path = '{path}'
tokenizer = AutoTokenizer.from_pretrained(path)
{load}

responds, history = model.chat(tokenizer, "Which city is the capital of China?", temperature=0.8, top_p=0.8)
print(responds)
"""
LOAD = (
    "model = AutoModelForCausalLM.from_pretrained("
    "path, torch_dtype=torch.bfloat16, device_map='cuda', trust_remote_code=True)"
)


@pytest.fixture
def model_folder(golden: Path, tmp_path: Path) -> Path:
    """A small MiniCPM whose config.json is as bare as the real one and names code that must not run."""
    folder = tmp_path / "MiniCPM"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(golden / "minicpm2b_tied" / name, folder)
    raw = json.loads((golden / "minicpm2b_tied" / "config.json").read_text(encoding="utf-8"))
    del raw["model_type"]
    raw["eos_token_id"] = [2, *range(900, 1000)]  # a random model seldom says 2, and the script allows 4096 tokens
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    for name in ("configuration_minicpm.py", "modeling_minicpm.py"):
        (folder / name).write_text("raise SystemExit('EXECUTED')", encoding="utf-8")
    return folder


def run(command: list[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    settings = ENVIRONMENT | environment
    return subprocess.run(command, capture_output=True, text=True, env=settings, timeout=300, check=False)


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


Compat = Callable[..., Done]

# Importing torch and transformers takes seconds: do it once, and fork a process for each script.
FORKING = """
import gc, json, os, sys
import minicpm.compat
gc.freeze()
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT), stream)
        sys.exit(minicpm.compat.main(job["arguments"]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def compat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Done]]:
    """compat(script, *arguments): what `python -m minicpm.compat script arguments` does."""
    folder = tmp_path_factory.mktemp("output")
    command = [sys.executable, "-c", FORKING]
    environment = ENVIRONMENT | {"HF_HOME": str(folder / "hub"), "MINICPM_HOME": str(folder / "home")}
    with default_interrupts():
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None

        def call(*arguments: str | Path) -> Done:
            files = {name: str(folder / name) for name in ("stdout", "stderr")}
            for file in files.values():
                Path(file).unlink(missing_ok=True)
            print(json.dumps({"arguments": [str(a) for a in arguments], **files}), file=process.stdin, flush=True)
            returncode = int(process.stdout.readline())
            return Done(returncode, *(Path(file).read_text(encoding="utf-8") for file in files.values()))

        call.folder = folder  # type: ignore[attr-defined]
        yield call
        process.stdin.close()


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


@no_cuda
def test_the_quick_start_runs_byte_for_byte_with_one_notice(model_folder: Path, tmp_path: Path):
    cached = tmp_path / "hub" / f"models--{NAME.replace('/', '--')}"
    shutil.copytree(model_folder, cached / "snapshots" / ("0" * 40))
    write(cached / "refs" / "main", "0" * 40)
    script = write(tmp_path / "quick_start.py", QUICK_START.format(path=NAME, load=LOAD))
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub"), "MINICPM_HOME": str(tmp_path / "home")}
    done = run([sys.executable, "-m", "minicpm.compat", script], **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")
    assert [line for line in done.stderr.splitlines() if line.startswith("minicpm.compat")] == [NOTICE]
    assert "EXECUTED" not in done.stdout + done.stderr


@no_cuda
def test_everything_sent_to_cuda_stays_on_the_cpu(compat: Compat, model_folder: Path, tmp_path: Path):
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


# The release's demo/hf_based_demo.py streams like this: `generate` in a thread, the interface reading a streamer.
DEMO = """
import argparse
from threading import Thread
from typing import List

import gradio as gr
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

parser = argparse.ArgumentParser()
parser.add_argument("--model_path", type=str, default="")
parser.add_argument("--torch_dtype", type=str, default="bfloat16", choices=["float32", "bfloat16"])
parser.add_argument("--server_name", type=str, default="127.0.0.1")
parser.add_argument("--server_port", type=int, default=7860)
args = parser.parse_args()

torch_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[args.torch_dtype]
path = args.model_path
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path, torch_dtype=torch_dtype, device_map="auto", trust_remote_code=True)


def hf_gen(dialog: List, top_p: float, temperature: float, max_dec_len: int):
    inputs = tokenizer.apply_chat_template(dialog, tokenize=False, add_generation_prompt=False)
    enc = tokenizer(inputs, return_tensors="pt").to("cuda")
    streamer = TextIteratorStreamer(tokenizer)
    generation_kwargs = dict(
        enc, do_sample=True, top_p=top_p, temperature=temperature, max_new_tokens=max_dec_len,
        pad_token_id=tokenizer.eos_token_id, streamer=streamer,
    )
    thread = Thread(target=model.generate, kwargs=generation_kwargs)
    thread.start()
    answer = ""
    for new_text in streamer:
        answer += new_text
        yield answer[4 + len(inputs):]


with gr.Blocks(theme="soft") as demo:
    gr.Markdown("# MiniCPM Gradio Demo")
    submit = gr.Button("Submit")
    submit.click(hf_gen, inputs=[], outputs=[])

demo.queue()
demo.launch(server_name=args.server_name, server_port=args.server_port, show_error=True)
"""

FAKE_GRADIO = """
handlers = []


class Blocks:
    def __init__(self, theme=None): pass
    def __enter__(self): return self
    def __exit__(self, *error): return False
    def queue(self): return self
    def launch(self, server_name, server_port, show_error):
        print("launched", server_name, server_port)
        pieces = list(handlers[0]([{"role": "user", "content": "hello"}], 0.8, 0.8, 60))
        print("pieces", len(pieces), pieces == sorted(pieces, key=len))


class Button:
    def __init__(self, label): pass
    def click(self, handler, inputs, outputs): handlers.append(handler)


def Markdown(text): print(text)
"""


@no_cuda
def test_the_gradio_demo_starts_and_really_streams(compat: Compat, model_folder: Path, tmp_path: Path):
    write(tmp_path / "gradio.py", FAKE_GRADIO)
    script = write(tmp_path / "hf_based_demo.py", DEMO)
    raw = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    write(model_folder / "config.json", json.dumps(raw | {"eos_token_id": 2}))  # an answer of some length
    done = compat(script, "--model_path", str(model_folder), "--torch_dtype", "float32", "--server_port", "7861")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["# MiniCPM Gradio Demo", "launched 127.0.0.1 7861"]
    name, count, grows = lines[2].split()
    assert (name, grows) == ("pieces", "True")
    assert int(count) > 3
    assert done.stderr.count("minicpm.compat") == 1


@pytest.mark.parametrize("name", ["openbmb/MiniCPM-2B-dpo-bf16", "openbmb/MiniCPM-2B-dpo-bf16/"])
def test_a_name_of_the_release_is_found_in_the_cache(compat: Compat, model_folder: Path, tmp_path: Path, name: str):
    cached = compat.folder / "hub" / "hub" / "models--openbmb--MiniCPM-2B-dpo-bf16"
    commit = "0" * 40
    if not cached.exists():
        shutil.copytree(model_folder, cached / "snapshots" / commit, ignore=shutil.ignore_patterns("*.py"))
        (cached / "refs").mkdir()
        (cached / "refs" / "main").write_text(commit, encoding="utf-8")
    script = f"""
        from transformers import AutoModelForCausalLM, AutoTokenizer
        print(AutoTokenizer.from_pretrained({name!r})('hi').input_ids[0])
        AutoModelForCausalLM.from_pretrained({name!r})
        """
    done = compat(write(tmp_path / "script.py", script))
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [("openbmb/MiniCPM-2B-sft-fp32/", "MiniCPM-2B-sft-fp32"), ("openbmb/MiniCPM-V/", "MiniCPM-V sees pictures")],
)
def test_a_model_that_cannot_be_had_is_named(compat: Compat, tmp_path: Path, name: str, message: str):
    code = f"from transformers import AutoModel\nAutoModel.from_pretrained({name!r}, trust_remote_code=True)"
    done = compat(write(tmp_path / "script.py", code))
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[-1]


def test_foreign_code_is_refused_by_name_even_when_trusted(compat: Compat, tmp_path: Path):
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
def test_a_script_sees_what_plain_python_shows_it(compat: Compat, tmp_path: Path, name: str):
    write(tmp_path / "neighbour.py", "value = 42")
    script = write(tmp_path / "script.py", BEHAVIOURS[name])
    ours, plain = compat(script, "a", "--b"), run([sys.executable, script, "a", "--b"])
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)


def test_an_interrupted_script_dies_as_plain_python_does(compat: Compat, tmp_path: Path):
    script = write(tmp_path / "script.py", "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = compat(script)
    assert done.returncode == -signal.SIGINT
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")
    assert "compat" not in done.stderr


def test_a_missing_script_and_a_missing_argument_are_usage_errors(compat: Compat, tmp_path: Path):
    missing = compat(tmp_path / "none.py")
    assert missing.returncode == 2
    assert "none.py" in missing.stderr
    bare = compat()
    assert bare.returncode == 2
    assert "usage" in bare.stderr
