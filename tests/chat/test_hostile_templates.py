"""An untrusted chat template renders as in jinja2, or fails with one sentence. It has no access to the system."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jinja2
import pytest

from minicpm.chat import template_for
from minicpm.errors import FormatError
from minicpm.tokenizer import Tokenizer

CONVERSATION = [
    {"role": "system", "content": "简短。"},
    {"role": "user", "content": "a < b & 'c' \"d\" \n"},
    {"role": "assistant", "content": "是\t"},
    {"role": "user", "content": "再见 😀"},
]

Render = Callable[..., str]


@pytest.fixture
def render(tmp_path: Path) -> Render:
    """Render the conversation with a template that lies in a model folder."""

    def render(template: str, config: str = '{"bos_token": "<s>", "eos_token": {"content": "</s>"}}') -> str:
        (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
        (tmp_path / "tokenizer_config.json").write_text(config)
        return template_for(tmp_path).render(CONVERSATION)

    return render


LLAMA_LIKE = """{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{%- endif %}
{{- bos_token }}{% for message in rest %}
    {%- if loop.first and system is defined %}[{{ system }}] {% endif %}
    {%- if message.role == 'user' %}[INST] {{ message.content | trim }} [/INST]
    {%- else %}{{ message.content }}{{ eos_token }}{%- endif %}
    {%- if loop.last and add_generation_prompt %}{% break %}{% endif %}
{%- endfor %}
"""


def test_a_foreign_template_renders_like_jinja2_itself(render: Render):
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    expected = environment.from_string(LLAMA_LIKE).render(
        messages=CONVERSATION, add_generation_prompt=True, bos_token="", eos_token="</s>"
    )
    assert "[INST]" in expected
    assert render(LLAMA_LIKE) == expected


def test_the_first_token_is_left_to_the_tokenizer(render: Render):
    assert render("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}") == "简短。</s>"


def test_the_functions_that_transformers_offers_are_there(render: Render):
    assert render("{{ messages[3] | tojson }}") == '{"role": "user", "content": "再见 😀"}'
    assert len(render("{{ strftime_now('%Y') }}")) == 4
    assert render("{{ messages | map(attribute='role') | join(' ') | upper }}") == "SYSTEM USER ASSISTANT USER"
    with pytest.raises(FormatError, match="roles must alternate"):
        render("{{ raise_exception('roles must\nalternate') }}")


def test_the_parts_of_an_answer_that_transformers_tracks_are_rendered(render: Render):
    """{% generation %} marks what is learned; what is set inside stays inside."""
    template = (
        "{% set x = 'out' %}{% for m in messages %}{% if m.role == 'assistant' %}\n"
        "{% generation %}\n{% set x = 'in' %}{{ m.content }}{{ eos_token }}{{ x }}{% endgeneration %}\n"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}{{ x }}"
    )
    assert render(template) == "简短。a < b & 'c' \"d\" \n是\t</s>in再见 😀out"
    with pytest.raises(FormatError, match="endgeneration"):
        render("{% generation %}{{ messages[0].content }}")


def test_what_a_prompt_without_tools_lacks_is_none(render: Render):
    assert render("{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}") == "True True True"
    assert render("{% if tools %}tools{% endif %}{% if tools is not none %}more{% endif %}-") == "-"


def test_only_tokens_that_exist_are_defined(render: Render):
    template = "{{ bos_token is defined }} {{ pad_token is defined }} {{ unk_token is defined }}"
    assert render(template) == "True False False"
    assert render(template, '{"pad_token": "</s>", "bos_token": null}') == "False True False"


def test_json_takes_the_arguments_of_transformers(render: Render):
    value = "{'b': [1, 'ä'], 'a': none}"
    for arguments in ({}, {"indent": 2}, {"separators": (",", ":")}, {"sort_keys": True}, {"ensure_ascii": True}):
        written = ", ".join(f"{name}={argument!r}" for name, argument in arguments.items())
        expected = json.dumps({"b": [1, "ä"], "a": None}, **{"ensure_ascii": False, **arguments})
        assert render(f"{{{{ {value} | tojson({written}) }}}}") == expected


BOMBS = {
    "giant string": "{{ 'a' * 2000000000 }}",
    "giant list": "{{ [0] * 2000000000 }}",
    "giant padding": "{{ 'a' | center(2000000000) }}",
    "giant format": "{{ '%02000000000d' % 1 }}",
    "giant range": "{{ range(1000000000) | list }}",
    "doubling": "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "much output": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "one output": "{{ 'a' * 50000000 }}",
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "giant power": "{{ 9 ** (9 ** 9) }}",
    "recursive macro": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "deep parentheses": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "deep blocks": "{% if 1 %}" * 6000 + "{% endif %}" * 5,
    "deep attributes": "{{ a" + ".a" * 20000 + " }}",
    "many digits": "{{ " + "9" * 60000 + " }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_bomb_is_one_clear_sentence(render: Render, name: str):
    with pytest.raises(FormatError, match=r"chat_template\.jinja: the chat template (failed|was stopped): ") as caught:
        render(BOMBS[name])
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch TRIPWIRE') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ (messages | attr('__class__')).__base__ }}",
    "{{ lipsum['__globals__']['os'].popen('touch TRIPWIRE') }}",
    "{{ raise_exception.__globals__['sys'].modules }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "{% include 'TRIPWIRE' %}",
    "{% import '/etc/passwd' as x %}",
    "{{ no_such_function() }}",
    "{% no_such_tag %}",
    "{{",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_cannot_leave_the_sandbox(render: Render, tmp_path: Path, template: str):
    tripwire = tmp_path / "tripwire"
    tripwire.write_text("a secret")
    with pytest.raises(FormatError, match="the chat template failed: "):
        render(template.replace("TRIPWIRE", str(tripwire)))
    assert tripwire.read_text() == "a secret"


def test_names_that_do_not_exist_are_empty_as_in_transformers(render: Render):
    assert render("[{{ custom_tools }}{{ messages[0].name }}]") == "[]"


def test_the_callers_environment_does_not_reach_a_template(render: Render, monkeypatch: pytest.MonkeyPatch):
    # A module of this name on PYTHONPATH would run with the caller's rights if the helper looked there.
    monkeypatch.setenv("PYTHONPATH", "/nonexistent")
    monkeypatch.setenv("PYTHONSTARTUP", "/nonexistent")
    assert render("{{ messages | length }}") == "4"


def test_a_module_beside_the_model_is_not_imported(render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "jinja2.py").write_text("raise SystemExit('imported')")
    (tmp_path / "json.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    assert render("{{ messages | length }}") == "4"


def test_no_helper_outlives_its_template(render: Render):
    before = children()
    with pytest.raises(FormatError):
        render(BOMBS["giant string"])
    assert children() == before


def children() -> list[str]:
    listing = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True)
    return [line for line in listing.stdout.splitlines() if "sandbox/child" in line]


def test_a_templates_complaint_cannot_drive_the_terminal(render: Render):
    with pytest.raises(FormatError, match="the chat template failed: TemplateError: first") as caught:
        render(r"{{ raise_exception('first\x1b[2J\x07\u202e\x9b31m second ' ~ 'x' * 1000) }}")
    assert str(caught.value).isprintable()
    assert "second" in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("spelling", ["{{ bos_token }}", "<s>", ""])
@pytest.mark.parametrize("names_bos", [True, False])
@pytest.mark.parametrize("adds_bos", [True, False, None])
def test_a_prompt_begins_with_one_bos_where_template_or_tokenizer_wants_it(
    golden: Path, tmp_path: Path, adds_bos: bool | None, names_bos: bool, spelling: str
):
    toy = golden / "minicpm2b_tied"
    shutil.copy(toy / "tokenizer.json", tmp_path)
    config = json.loads((toy / "tokenizer_config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("add_bos_token", "bos_token", "chat_template")}
    config |= {} if adds_bos is None else {"add_bos_token": adds_bos}
    config |= {"bos_token": "<s>"} if names_bos else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "chat_template.jinja").write_text(spelling + "[{{ messages[0].content }}]")
    tokenizer, template = Tokenizer.from_folder(tmp_path), template_for(tmp_path)
    ids = tokenizer.encode(template.render(CONVERSATION))
    is_wanted = adds_bos is not False or spelling != ""
    assert tokenizer.bos_token_id == 1
    assert [i for i in ids if i == 1] == ids[:1] * is_wanted
    assert tokenizer.decode(ids).strip() == "[简短。]"


def test_a_template_file_that_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe\x00{{")
    with pytest.raises(FormatError, match=r"chat_template\.jinja: not UTF-8 text"):
        template_for(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"x" * 1_000_000)
    with pytest.raises(FormatError, match="1,000,000 bytes, expected at most 262,144"):
        template_for(tmp_path)


def test_the_helper_takes_on_its_limits_before_it_reads_a_template(tmp_path: Path):
    # The template asks the operating system nothing; this asks a helper of the same file what it could still do.
    code = (
        "import resource, sys\n"
        f"source = open({str(_child())!r}).read().replace('\\nmain()\\n', '')\n"
        "exec(source)\n"
        "limit_resources(2, 1 << 29)\n"
        "try: open('/etc/hostname')\n"
        "except OSError as error: print(error.strerror)\n"
        "print(resource.getrlimit(resource.RLIMIT_CPU), resource.getrlimit(resource.RLIMIT_AS))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["Too many open files", f"(2, 2) ({1 << 29}, {1 << 29})"]


def _child() -> Path:
    from minicpm.sandbox import process

    return Path(process.__file__).with_name("child.py")
