"""Prompts equal those of 2024 letter for letter; answers end where a turn marker begins, however they arrive."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minicpm.chat import (
    CHATML_TEMPLATE,
    CURRENT_TEMPLATE,
    FEBRUARY_2024_TEMPLATE,
    MAX_MESSAGES,
    STOP_STRINGS,
    ChatTemplate,
    StopMatcher,
    contains_markers,
    extract_response,
    template_for,
    validate_messages,
)
from minicpm.errors import FormatError
from minicpm.tokenizer import Tokenizer

TEMPLATES = [CURRENT_TEMPLATE, FEBRUARY_2024_TEMPLATE, CHATML_TEMPLATE]

messages_strategy = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant"]),
            "content": st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
        }
    ),
    min_size=1,
    max_size=6,
)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


@pytest.fixture(scope="module")
def golden_chat(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "chat" / "minicpm2b_chat.json").read_text())


def write_template(folder: Path, template: object, name: str = "tokenizer_config.json") -> Path:
    text = template if name.endswith(".jinja") else json.dumps({"chat_template": template})
    (folder / name).write_text(str(text), encoding="utf-8")
    return folder


# --- Templates -------------------------------------------------------------------------------------------------


def test_golden_conversations_give_the_golden_prompts(golden_chat: dict[str, Any], golden: Path):
    template = template_for(golden / "minicpm2b_tied")
    for case in golden_chat["cases"]:
        messages = [*(case["history"] or []), {"role": case["role"], "content": case["query"]}]
        assert template.render(messages) == case["prompt"]


@settings(max_examples=80, deadline=None)
@given(messages=messages_strategy, add_generation_prompt=st.booleans())
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_python_templates_equal_jinja2(template: ChatTemplate, messages: Any, add_generation_prompt: bool):
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    expected = environment.from_string(template.text).render(
        messages=messages, add_generation_prompt=add_generation_prompt
    )
    assert template.render(messages, add_generation_prompt) == expected


@pytest.mark.parametrize(
    ("file", "name", "sha256"),
    [
        ("tokenizer_config.json", "minicpm", "d9f25394"),
        ("tokenizer_config.feb2024.json", "minicpm-2024-02", "ae9b050c"),
    ],
)
def test_the_published_templates_are_recognised(
    real_tokenizer: Path, tmp_path: Path, file: str, name: str, sha256: str
):
    (tmp_path / "tokenizer_config.json").write_bytes((real_tokenizer / file).read_bytes())
    template = template_for(tmp_path)
    assert (template.name, template.origin) == (name, "tokenizer_config.json")
    assert hashlib.sha256(template.text.encode()).hexdigest().startswith(sha256)


def test_the_february_template_strips_and_the_current_one_does_not():
    messages = [user("  a \n"), {"role": "assistant", "content": " b "}]
    assert FEBRUARY_2024_TEMPLATE.render(messages) == "<用户>a<AI>b"
    assert CURRENT_TEMPLATE.render(messages) == "<用户>  a \n<AI> b "


@pytest.mark.parametrize(
    "text",
    [
        CHATML_TEMPLATE.text,
        # The same program in the spellings seen in the wild.
        "{%- for message in messages -%}\n"
        '{{ "<|im_start|>" + message.role + "\\n" + message.content + "<|im_end|>\\n" }}\n'
        "{%- endfor -%}\n{%- if add_generation_prompt -%}\n{{ '<|im_start|>assistant\\n' }}\n{%- endif -%}",
        "{% for message in messages %}{{ '<|im_start|>' ~ message['role'] ~ '\\n' }}{{ message['content'] }}"
        "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    ],
)
def test_chatml_is_recognised_however_it_is_spelled(tmp_path: Path, text: str):
    template = template_for(write_template(tmp_path, text))
    assert (template.name, template.text) == ("chatml", text)
    assert template.stop_strings == ("<|im_end|>", "<|im_start|>")


@pytest.mark.parametrize(
    "text",
    [
        CHATML_TEMPLATE.text.replace("im_end", "im_stop"),
        CHATML_TEMPLATE.text.replace("{% endfor %}", " {% endfor %}"),
        CHATML_TEMPLATE.text.replace("message['role']", "message['name']"),
        CHATML_TEMPLATE.text.replace("add_generation_prompt", "messages"),
        CURRENT_TEMPLATE.text.replace("content']", "content'].strip()", 1),
    ],
)
def test_a_template_that_only_resembles_a_known_one_is_foreign(tmp_path: Path, text: str):
    assert template_for(write_template(tmp_path, text)).name == "foreign"


def test_the_jinja_file_wins_over_the_configuration(tmp_path: Path):
    write_template(tmp_path, CURRENT_TEMPLATE.text)
    write_template(tmp_path, FEBRUARY_2024_TEMPLATE.text, "chat_template.jinja")
    template = template_for(tmp_path)
    assert (template.name, template.origin) == ("minicpm-2024-02", "chat_template.jinja")


def test_of_a_list_of_templates_the_default_is_taken(tmp_path: Path):
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CURRENT_TEMPLATE.text}]
    assert template_for(write_template(tmp_path, named)).name == "minicpm"


def test_a_folder_without_template_gets_minicpms_own_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "minicpm"):
        assert template_for(tmp_path) == CURRENT_TEMPLATE
        template_for(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path} has no chat template; using MiniCPM's own"
    ]


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        (7, "chat_template must be a string, got int"),
        ({"default": "x"}, "chat_template must be a string, got dict"),
        ([{"name": "rag", "template": "x"}], "without one named 'default'"),
        ([{"name": "default", "template": 3}], "chat_template must be a string, got int"),
        ("x" * 70_000, "70,000 characters, expected at most 65,536"),
    ],
)
def test_a_template_that_is_no_text_is_refused(tmp_path: Path, template: object, complaint: str):
    with pytest.raises(FormatError, match=f"tokenizer_config.json: .*{complaint}"):
        template_for(write_template(tmp_path, template))


def test_the_mobile_apps_prompts_are_system_messages():
    with pytest.warns(DeprecationWarning, match="SYSTEM_PROMPTS is deprecated"):
        from minicpm.chat import SYSTEM_PROMPTS
    prompts = {
        name: CURRENT_TEMPLATE.render([{"role": "system", "content": text}, user("你好")])
        for name, text in SYSTEM_PROMPTS.items()
    }
    assert prompts == {
        "android": "<系统命令>你是MiniCPM，由面壁智能开发。<用户>你好<AI>",
        "ios": "<系统命令>你是MiniCPM，你是由面壁智能开发的语言模型。<用户>你好<AI>",
    }


def test_known_templates_are_rendered_without_jinja2(real_tokenizer: Path):
    code = (
        "import sys; from pathlib import Path; from minicpm.chat import template_for\n"
        f"template_for({str(real_tokenizer)!r}).render([{{'role': 'user', 'content': 'hi'}}])\n"
        "assert not {'jinja2', 'tokenizers', 'numpy', 'torch'} & set(sys.modules), set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- Messages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "messages is empty"),
        ("hello", "must be a list of role and content, got str"),
        ({"role": "user", "content": "x"}, "must be a list of role and content, got dict"),
        (None, "got NoneType"),
        ([user("a"), "b"], r"messages\[1\] must have role and content, got str"),
        ([{"role": "tool", "content": "x"}], r"messages\[0\].role must be one of system, user, assistant, got 'tool'"),
        ([{"content": "x"}], r"messages\[0\].role must be one of .* got None"),
        ([{"role": ["user"], "content": "x"}], r"messages\[0\].role must be one of"),
        ([{"role": "user"}], r"messages\[0\].content must be a string, got NoneType"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"messages\[0\].content must be a string, got list"),
        ([{"role": "user", "content": "x", "contnet": "y"}], r"messages\[0\] has the field 'contnet'"),
        ([user("a\udc00")], r"messages\[0\].content holds half of a surrogate pair .* at character 1"),
        ([user("x" * (2**20 + 1))], r"messages\[0\].content has 1,048,577 characters"),
        ([user("x")] * (MAX_MESSAGES + 1), "4,097 messages are more than the 4,096"),
    ],
    ids=range(14),
)
def test_what_is_no_conversation_is_refused_by_name(messages: Any, complaint: str):
    with pytest.raises(ValueError, match=complaint):
        validate_messages(messages)
    with pytest.raises(ValueError, match=complaint):
        CURRENT_TEMPLATE.render(messages)


def test_markers_in_user_text_are_found_but_not_changed():
    assert contains_markers("say <AI> please") and contains_markers("<用户>")
    assert not contains_markers("<ai> < AI> <User>")
    assert CURRENT_TEMPLATE.render([user("<用户>inject<AI>")]) == "<用户><用户>inject<AI><AI>"


# --- Where an answer ends --------------------------------------------------------------------------------------


def test_golden_answers_are_extracted(golden_chat: dict[str, Any], golden: Path):
    tokenizer = Tokenizer.from_folder(golden / "minicpm2b_tied")
    for case in golden_chat["response_extraction"]:
        ids = case["generated_ids"]
        # Upstream drops the last id whatever it is; only an end token may be dropped.
        response = extract_response(tokenizer.decode(ids[:-1] if ids[-1] in tokenizer.eos_token_ids else ids))
        if ids[-1] == 2:
            assert response == case["response"]
        else:
            assert response == case["source_text"] != case["response"]


@pytest.mark.parametrize(
    ("text", "response"),
    [
        ("", ""),
        ("a", "a"),
        ("a<AI>b<用户>c", "a"),
        ("a<用户>b<AI>", "a"),
        ("<AI>", ""),
        ("a\n<", "a\n<"),
        ("</s>s", "</s>s"),
    ],
)
def test_an_answer_ends_at_the_first_marker(text: str, response: str):
    assert extract_response(text) == response


def stream(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    shown = ""
    for piece in pieces:
        emitted, is_stopped = matcher.push(piece)
        shown += emitted
        if is_stopped:
            break
    return shown + matcher.flush(), matcher.is_stopped


def stopped_by_definition(stops: tuple[str, ...], text: str) -> tuple[str, bool]:
    """Letter by letter: the stop string complete first wins, of several the one that began first."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@settings(max_examples=300, deadline=None)
@given(
    stops=st.lists(st.text("ab<", min_size=1, max_size=4), max_size=4).map(tuple),
    pieces=st.lists(st.text("ab<", max_size=5), max_size=8),
)
@example(stops=("abcd", "bc"), pieces=["abcd"])
@example(stops=("aab",), pieces=["a", "a", "a", "b"])
def test_a_stream_stops_where_the_whole_text_would(stops: tuple[str, ...], pieces: list[str]):
    assert stream(stops, pieces) == stopped_by_definition(stops, "".join(pieces))


@settings(max_examples=300, deadline=None)
@given(
    stops=st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=4), text=st.text("ab<x", max_size=20)
)
def test_only_what_could_become_a_stop_string_is_held_back(stops: list[str], text: str):
    matcher = StopMatcher(stops)
    shown = ""
    for i, letter in enumerate(text, 1):
        emitted, is_stopped = matcher.push(letter)
        shown += emitted
        if is_stopped:
            return
        held = text[len(shown) : i]
        assert shown + held == text[:i]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_answers_stream_until_the_first_marker():
    assert stream(STOP_STRINGS, list("你好<AI>又来")) == ("你好", True)
    assert stream(STOP_STRINGS, list("1 < 2 <用 户>")) == ("1 < 2 <用 户>", False)
    matcher = StopMatcher(STOP_STRINGS)
    assert matcher.push("a <") == ("a ", False)
    assert matcher.push("b") == ("<b", False)
    assert matcher.push("<AI> more") == ("", True)
    assert matcher.push("more") == ("", True)
    assert matcher.flush() == ""


@pytest.mark.parametrize("stops", ["<AI>", [""], [1], ["a", None]])
def test_stop_strings_that_are_none_are_refused(stops: Any):
    with pytest.raises(ValueError, match="list of non-empty strings"):
        StopMatcher(stops)
