"""Commands of the release whose files are not here: the verb that runs in their place, or one sentence."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minicpm.cli.main import parse
from minicpm.compat import main
from minicpm.compat.commands import Answer, Verb, answer


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without the release's files, and no vLLM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: None)
    return tmp_path


SAMPLING = (
    "--temperature 0.5 --top-p 0.8 --top-k 0 --presence-penalty 1 --frequency-penalty 0 --repetition-penalty 1 "
    "--max-tokens 1000"
)
TUNING = "--model_name_or_path M --output_dir R --train_data_path t.json"
VERBS = {
    "inference/convert_hf_to_vllmcpm.py --load A --save B": "convert A B --to vllmcpm",
    "python3 ./inference/convert_hf_to_vllmcpm.py --save=B --load=A": "convert A B --to vllmcpm",
    "python /home/me/MiniCPM/inference/convert_hf_to_vllmcpm.py --load 'a b' --save B": "convert 'a b' B --to vllmcpm",
    "python vllm_convert_checkpoint_to_hf.py --load A --save B": "convert A B --to hf",
    "python demo/hf_based_demo.py --model_path M": "demo -m M",
    "python hf_based_demo.py --model_path M --torch_dtype float32 --server_name 0.0.0.0 --server_port 80": (
        "demo -m M --dtype float32 --host 0.0.0.0 --port 80"
    ),
    "python demo/vllm_based_demo.py --model_path M": "demo -m M",
    "python inference.py --model_path M --prompt_path p.txt": f"run -m M -f p.txt {SAMPLING}",
    "python -u inference/vllm/examples/infer_cpm/inference.py --model_path M --prompt_path prompts/prompt_demo.txt": (
        f"run -m M --showcase {SAMPLING}"
    ),
    f"python finetune/finetune.py {TUNING}": (
        "finetune -m M --data t.json --out R --rows 8 --micro-rows 8 --epochs 3 --length 512 --lr 5e-5 "
        "--weight-decay 0 --warmup-steps 0 --save-every 500 --seed 42 --no-mup --schedule cosine"
    ),
    f"deepspeed --include localhost:0,1 finetune.py {TUNING} --eval_data_path d.json --learning_rate 1e-3 "
    "--per_device_train_batch_size 1 --per_device_eval_batch_size 4 --bf16 --gradient_accumulation_steps 8 "
    "--warmup_steps 100 --max_steps 3000 --weight_decay 0.01 --evaluation_strategy steps --eval_steps 500 "
    "--save_strategy steps --save_steps 500 --seed 42 --log_level info --logging_strategy steps --logging_steps 10 "
    "--deepspeed configs/ds_config_zero3_offload.json": (
        "finetune -m M --data t.json --eval d.json --eval-every 500 --out R --rows 8 --micro-rows 1 --steps 3000 "
        "--length 512 --lr 1e-3 --weight-decay 0.01 --warmup-steps 100 --save-every 500 --seed 42 --no-mup "
        "--schedule cosine"
    ),
}


@pytest.mark.parametrize("line", VERBS, ids=lambda line: line[:50])
def test_a_script_that_is_not_here_becomes_a_verb(line: str):
    found = answer(shlex.split(line))
    assert isinstance(found, Verb)
    assert found.command == f"minicpm {VERBS[line]}"
    parse(found.arguments)


SENTENCES = {
    "pip install inference/vllm": "make vllm",
    "python -m pip install -e ./inference/vllm/": "make vllm",
    "cd inference/vllm/examples/infer_cpm": "minicpm run -m MODEL -f PROMPTS.txt",
    "cd finetune": "minicpm finetune --help",
    "bash finetune/lora_finetune.sh": "PEFT",
    f"python finetune.py {TUNING} --use_lora --fp16": "PEFT",
    "bash sft_finetune.sh": "minicpm finetune -m MODEL",
    "python inference_renping.py --model_path M --prompt_path p.json": "--raw --temperature 0.3",
    "python demo/hf_based_demo.py": "--model_path",
    "python demo/hf_based_demo.py --model_path M --colour red": "--colour",
    "git clone https://github.com/OpenBMB/UltraEval.git": "UltraEval is a program of its own",
    "bash run_eval.sh": "UltraEval is a program of its own",
    "pip install bmtrain": "minicpm finetune",
}


@pytest.mark.parametrize("line", SENTENCES, ids=lambda line: line[:50])
def test_what_no_verb_does_is_answered_in_one_sentence(line: str, capsys: pytest.CaptureFixture[str]):
    assert isinstance(answer(shlex.split(line)), Answer)
    assert main(shlex.split(line)) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("minicpm.compat: ") and SENTENCES[line] in err


@pytest.mark.parametrize(
    "line",
    [
        "quick_start.py",
        "python my/inference.py --input x",  # another program's options
        "finetune.py",
        "pip install -e .",
        "git clone https://github.com/OpenBMB/MiniCPM.git",
        "python script.py --note bmtrain --from UltraEval",
    ],
)
def test_other_commands_are_left_alone(line: str):
    assert answer(shlex.split(line)) is None


def test_a_script_that_is_here_runs_as_it_stands(elsewhere: Path):
    script = elsewhere / "demo" / "hf_based_demo.py"
    script.parent.mkdir()
    script.write_text("print('mine')")
    assert answer(["demo/hf_based_demo.py", "--model_path", "M"]) is None


def test_a_script_for_the_fork_of_vllm_becomes_a_verb_even_if_it_is_here(elsewhere: Path):
    (elsewhere / "inference.py").write_text("from vllm import LLM\nSamplingParams(use_beam_search=False)")
    found = answer(["python", "inference.py", "--model_path", "M", "--prompt_path", "p.txt"])
    assert isinstance(found, Verb) and found.arguments[:3] == ["run", "-m", "M"]


def test_the_demo_runs_on_vllm_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/somewhere/{name}")
    found = answer(["demo/vllm_based_demo.py", "--model_path", "M"])
    assert isinstance(found, Verb) and found.arguments[-2:] == ["--backend", "vllm"]


def test_an_answer_comes_without_torch():
    code = "import sys; from minicpm.compat import main; main(['cd', 'finetune']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
