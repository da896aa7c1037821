"""`minicpm run` from arguments, stdin and files, in text and JSON, and its refusals."""

from __future__ import annotations

import json

import pytest

GREEDY = ("--temperature", "0", "--max-tokens", "6")


def test_one_prompt_streams_its_answer_to_stdout(minicpm, toy):
    outcome = minicpm("run", "-m", toy, *GREEDY, "Which is higher?")
    assert outcome.code == 0
    assert outcome.out.strip()
    assert outcome.err == ""


def test_arguments_stdin_and_file_give_the_same_answer(minicpm, toy, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes("\ufeffWhich is higher?\r\n".encode())
    by_argument = minicpm("run", "-m", toy, *GREEDY, "Which is higher?").out
    block = f"================\n<用户>: Which is higher?\n<AI>:\n{by_argument}"
    assert minicpm("run", "-m", toy, *GREEDY, stdin="Which is higher?\n").out == by_argument
    assert minicpm("run", "-m", toy, *GREEDY, "-f", prompts).out == block
    assert minicpm("run", "-m", toy, *GREEDY, "-f", "-", stdin="Which is higher?\n").out == block


def test_piped_text_goes_below_each_prompt(minicpm, toy):
    joined = "Which is higher?\n\nMount Tai or Mount Huang"
    outcome = minicpm("run", "-m", toy, *GREEDY, "--json", "Which is higher?", stdin="Mount Tai or Mount Huang\n")
    answer = json.loads(outcome.out)
    assert answer["prompt"] == joined
    assert answer["text"] == json.loads(minicpm("run", "-m", toy, *GREEDY, "--json", joined).out)["text"]
    several = minicpm("run", "-m", toy, *GREEDY, "--json", "a", "b", stdin="text").out.splitlines()
    assert [json.loads(line)["prompt"] for line in several] == ["a\n\ntext", "b\n\ntext"]


def test_a_prompt_file_prints_the_blocks_of_the_2024_example(minicpm, toy, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("hello\n\nWhich is higher?\n", encoding="utf-8")
    lines = minicpm("run", "-m", toy, *GREEDY, "-f", prompts).out.split("\n")
    assert lines[:3] == ["================", "<用户>: hello", "<AI>:"]
    assert [line for line in lines if line.startswith("<用户>: ")] == ["<用户>: hello", "<用户>: Which is higher?"]


def test_jsonl_records_keep_their_fields_and_their_order(minicpm, toy, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    turns = [
        {"role": "user", "content": "Mount Tai or Mount Huang"},
        {"role": "assistant", "content": "Mount Huang."},
        {"role": "user", "content": "Why?"},
    ]
    records = [{"idx": 7, "prompt": "hello"}, {"idx": 8, "messages": turns}, {"idx": 9, "prompt": "a"}]
    prompts.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    outcome = minicpm("run", "-m", toy, *GREEDY, "--json", "-f", prompts)
    answers = [json.loads(line) for line in outcome.out.splitlines()]
    assert [answer["idx"] for answer in answers] == [7, 8, 9]
    assert all(answer["finish_reason"] in ("length", "stop") for answer in answers)
    assert answers[1]["usage"]["prompt_tokens"] > answers[0]["usage"]["prompt_tokens"]


def test_jsonl_is_read_from_stdin_too(minicpm, toy):
    line = json.dumps({"idx": 1, "prompt": "hello"})
    outcome = minicpm("run", "-m", toy, *GREEDY, "-f", "-", "--jsonl", "--json", stdin=line + "\n")
    assert json.loads(outcome.out)["idx"] == 1


def test_a_system_text_stands_in_front_of_every_prompt(minicpm, toy):
    alone = json.loads(minicpm("run", "-m", toy, *GREEDY, "--json", "hello").out)
    guided = json.loads(minicpm("run", "-m", toy, *GREEDY, "--json", "--system", "Be brief.", "hello").out)
    assert guided["usage"]["prompt_tokens"] > alone["usage"]["prompt_tokens"]


def test_a_prompt_longer_than_one_chunk_is_answered(minicpm, toy):
    outcome = minicpm("run", "-m", toy, "--max-tokens", "2", "--json", "a b " * 300)
    assert outcome.code == 0
    assert json.loads(outcome.out)["usage"]["prompt_tokens"] > 512


def test_raw_blocks_join_prompt_and_continuation(minicpm, toy):
    outcome = minicpm("run", "-m", toy, *GREEDY, "--raw", "hello", "one")
    texts = outcome.out.split("================\n")[1:]
    assert [text.startswith(prompt) for text, prompt in zip(texts, ("hello", "one"))] == [True, True]


def test_raw_continues_the_text_without_a_template(minicpm, toy):
    raw = json.loads(minicpm("run", "-m", toy, *GREEDY, "--raw", "--json", "hello").out)
    templated = json.loads(minicpm("run", "-m", toy, *GREEDY, "--json", "hello").out)
    assert raw["usage"]["prompt_tokens"] < templated["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "expected"),
    [
        (("--temperature", "-1", "hi"), "", 2, "temperature"),
        (("--top-p", "1.5", "hi"), "", 2, "top_p"),
        (("--top-k", "-3", "hi"), "", 2, "top_k"),
        (("--max-tokens", "0", "hi"), "", 2, "max_tokens"),
        (("--repetition-penalty", "nan", "hi"), "", 2, "repetition_penalty"),
        (("",), "", 2, "the prompt is empty"),
        ((), "", 2, "the prompt is empty"),
        ((), b"\xff\xfe", 1, "not UTF-8"),
        (("x" * 9000,), "", 1, "the context holds 2048"),
        (("--backend", "gpu", "hi"), "", 2, "backend must be one of"),
        (("--dtype", "int7", "hi"), "", 2, "dtype must be one of"),
        (("-f", "missing.txt"), "", 1, "missing.txt: No such file"),
        (("-f", "-"), "\n\n", 1, "holds no prompt"),
        (("-f", "-", "hi"), "", 2, "in only one way"),
        (("--jsonl", "hi"), "", 2, "--jsonl needs --file"),
        (("--raw", "--system", "a", "hi"), "", 2, "--system needs the chat template"),
        (("--context", "100000", "hi"), "", 2, "context 100000 is more than the 2048 tokens"),
        (("--device", "meta", "hi"), "", 2, "device must be"),
        ((), None, 2, "the prompt is empty"),
    ],
)
def test_wrong_input_is_one_sentence(minicpm, toy, arguments, stdin, code, expected):
    outcome = minicpm("run", "-m", toy, *arguments, stdin=stdin)
    assert outcome.code == code
    assert expected in outcome.err
    assert outcome.err.startswith("minicpm: ")
    assert outcome.err.count("\n") == 1
    assert outcome.out == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 2"),
        ('{"text": "a"}', "line 2: expected an object with either 'prompt' or 'messages'"),
        ('{"prompt": 3}', "line 2"),
        ('{"messages": []}', "line 2"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "line 2"),
    ],
)
def test_a_wrong_record_is_named_by_its_line(minicpm, toy, tmp_path, line, expected):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n' + line + "\n", encoding="utf-8")
    outcome = minicpm("run", "-m", toy, "-f", prompts)
    assert outcome.code == 1
    assert expected in outcome.err


def test_wrong_usage_is_exit_code_2(minicpm, toy):
    assert minicpm("run", "-m", toy, "--temperature", "warm", "hi").code == 2
    assert minicpm("run", "--no-such-flag").code == 2
    assert minicpm("dance").code == 2


@pytest.mark.parametrize(
    "word",
    [
        "minicpm-nano", "MiniCPM-2B-dpo-bf16", "openbmb/MiniCPM-2B-dpo-bf16", "OpenBMB/miniCPM-bf16", "hf:minicpm-2b",
        "https://huggingface.co/openbmb/MiniCPM-V", "model.gguf", "minicpm-2b-dop", "Qwen/Qwen2.5-0.5B-Instruct",
        "./folder", "folder",
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["run", "chat"])
def test_a_model_in_the_place_of_a_prompt_is_answered_with_what_to_type(minicpm, tmp_path, monkeypatch, verb, word):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    outcome = minicpm(verb, word, "What is it?")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        f"minicpm: {word} is a model, and a model is given with -m; type: minicpm {verb} -m {word} 'What is it?'\n"
    )
    assert "minicpm chat -m" in minicpm(verb, word).err


@pytest.mark.parametrize(
    "prompt", ["minicpm", "and/or", "Is openbmb/MiniCPM-2B-dpo-bf16 good?", "km/h", "1/2", "nowhere", "hf:", "a:b"]
)
def test_a_prompt_that_is_no_model_is_answered(minicpm, toy, prompt, monkeypatch):
    monkeypatch.setattr("minicpm.hub.embedded.FOLDER", toy)
    outcome = minicpm("run", "--max-tokens", "2", "--temperature", "0", prompt)
    assert outcome.code == 0, outcome.err


def test_with_a_model_every_word_is_a_prompt(minicpm, toy):
    assert minicpm("run", "-m", toy, *GREEDY, "minicpm-nano").code == 0


def test_a_missing_model_is_named(minicpm, tmp_path):
    outcome = minicpm("run", "-m", tmp_path / "nowhere", "hi")
    assert outcome.code == 1
    assert "nowhere" in outcome.err
