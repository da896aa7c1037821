"""Show cases, several samples with a vote, and the page of a run."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from minicpm.cli.output import printable
from minicpm.cli.showcase import read_showcases

GREEDY = ("--temperature", "0", "--max-tokens", "6")
OURS = Path(__file__).parents[2] / "examples" / "showcases"


class Reader(HTMLParser):
    """The elements and the text that a browser would show."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def write_cases(file: Path, *cases: dict[str, object]) -> Path:
    base = {"title": "A title", "category": "writing", "language": "en"}
    lines = [json.dumps({**base, **case}, ensure_ascii=False) for case in cases]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def test_the_shipped_show_cases_cover_what_the_release_showed_in_both_languages():
    cases = read_showcases([str(OURS)])
    categories = {"writing", "code", "reasoning", "translation", "instructions", "special characters"}
    for language in ("en", "zh"):
        assert {case.category for case in cases if case.language == language} == categories
    assert len({case.title for case in cases}) == len(cases)


def test_without_a_path_the_packages_own_are_taken_anywhere(minicpm, toy, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    outcome = minicpm("run", "-m", toy, "--temperature", "0", "--max-tokens", "1", "--json", "--showcase")
    titles = [json.loads(line)["title"] for line in outcome.out.splitlines()]
    assert titles == [case.title for case in read_showcases([str(OURS)])]


def test_a_cases_own_sampling_goes_before_the_models_and_flags_before_both(minicpm, toy, tmp_path):
    file = write_cases(tmp_path / "a.jsonl", {"prompt": "hello", "sampling": {"max_tokens": 2, "temperature": 0}})
    own = json.loads(minicpm("run", "-m", toy, "--json", "--showcase", file).out)
    flagged = json.loads(minicpm("run", "-m", toy, "--json", "--max-tokens", "5", "--showcase", file).out)
    assert own["usage"]["completion_tokens"] == 2
    assert flagged["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({}, "expected an object with either 'prompt' or 'messages'"),
        ({"prompt": "a", "messages": []}, "expected an object with either 'prompt' or 'messages'"),
        ({"prompt": "a", "colour": "red"}, "unknown field 'colour'"),
        ({"prompt": "a", "title": " "}, "title must be a text"),
        ({"prompt": "a", "sampling": [1]}, "sampling must be an object"),
        ({"prompt": "a", "sampling": {"temperature": -1}}, "temperature"),
        ({"prompt": "a", "sampling": {"heat": 1}}, "heat"),
        ({"prompt": 3}, "messages[0].content must be a string"),
    ],
)
def test_a_wrong_case_is_named_by_its_line(minicpm, toy, tmp_path, case, expected):
    file = write_cases(tmp_path / "a.jsonl", {"prompt": "fine"}, case)
    outcome = minicpm("run", "-m", toy, "--showcase", file)
    assert outcome.code == 1
    assert f"{file}: line 2: " in outcome.err
    assert expected in outcome.err


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("--showcase", "a.jsonl", "-f", "b.txt"), 2, "in only one way"),
        (("--showcase", "nowhere.jsonl"), 1, "nowhere.jsonl"),
        (("--showcase", "."), 1, ". holds no .jsonl file"),
        (("--samples", "0", "hi"), 2, "argument --samples: must be 1 or more"),
        (("--vote", "hi"), 2, "give --samples 2 or more"),
        (("--samples", "2", "--temperature", "0", "hi"), 2, "with temperature 0 all --samples are the same"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(minicpm, toy, tmp_path, monkeypatch, arguments, code, expected):
    monkeypatch.chdir(tmp_path)
    outcome = minicpm("run", "-m", toy, *arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert expected in outcome.err


# --- samples -----------------------------------------------------------------------------------------------------


def test_samples_are_the_answers_of_the_seeds_that_follow(minicpm, toy):
    sampled = ("run", "-m", toy, "--temperature", "1", "--max-tokens", "6", "--json")
    lines = minicpm(*sampled, "--samples", "3", "--seed", "11", "hello", "Which is higher?").out.splitlines()
    answers = [json.loads(line) for line in lines]
    assert [(answer["prompt"], answer["seed"]) for answer in answers] == [
        (prompt, seed) for prompt in ("hello", "Which is higher?") for seed in (11, 12, 13)
    ]
    alone = json.loads(minicpm(*sampled, "--seed", "12", "hello").out)
    assert answers[1]["text"] == alone["text"]
    assert len({answer["text"] for answer in answers[:3]}) > 1


def test_a_vote_prints_one_answer_per_prompt_and_its_counts(minicpm, toy):
    sampled = ("run", "-m", toy, "--temperature", "1", "--max-tokens", "6", "--samples", "4", "--seed", "3")
    texts = [json.loads(line)["text"] for line in minicpm(*sampled, "--json", "hello").out.splitlines()]
    voted = json.loads(minicpm(*sampled, "--json", "--vote", "hello").out)
    assert voted["text"] in texts
    assert sum(count for _, count in voted["vote"]["counts"]) == 4
    assert voted["vote"]["counts"][0][0] == voted["vote"]["answer"]
    shown = minicpm(*sampled, "--vote", "hello").out
    assert re.search(rf"<AI>:\n{re.escape(voted['text'])}\n\[\d of 4 samples: ", shown)


# --- the page ----------------------------------------------------------------------------------------------------


def test_the_page_holds_every_prompt_answer_and_setting_and_needs_nothing_else(minicpm, toy, tmp_path):
    cases = write_cases(
        tmp_path / "a.jsonl",
        {"prompt": "hello", "title": "One", "sampling": {"max_tokens": 4}},
        {"prompt": "你好", "title": "二", "language": "zh", "category": "code", "sampling": {"max_tokens": 2}},
    )
    file = tmp_path / "out.html"
    outcome = minicpm(
        "run", "-m", toy, "--temperature", "0", "--seed", "5", "--html", file, "--json", "--showcase", cases
    )
    page = Reader(file.read_text(encoding="utf-8"))
    assert f"Written: {file}" in outcome.err
    for line in outcome.out.splitlines():
        assert printable(json.loads(line)["text"].strip()) in page.text
    for part in (
        "One",
        "二",
        "你好",
        "writing",
        "code",
        str(toy),
        "temperature 0",
        "max_tokens 2",
        "seed 5",
        "tokens/s",
    ):
        assert part in page.text
    assert ("article", {"lang": "zh"}) in page.tags
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in page.tags}
    linked = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("href", "src")]
    assert linked == ["#part-0", "#part-1"]


def test_nothing_that_a_prompt_says_becomes_markup(minicpm, toy, tmp_path):
    hostile = '</div><script>alert(1)</script><img src=x onerror="a()">&amp;\x1b[2J\u0000'
    file = tmp_path / "out.html"
    cases = write_cases(
        tmp_path / "a.jsonl",
        {"prompt": hostile, "title": hostile.strip("\0"), "category": '"><b>', "language": '"><i>'},
        {"prompt": f"```{hostile}\n</code></pre><script>\n```"},
    )
    minicpm("run", "-m", toy, *GREEDY, "--html", file, "--showcase", cases)
    text = file.read_text(encoding="utf-8")
    page = Reader(text)
    assert not {"script", "img", "b", "i"} & {tag for tag, _ in page.tags}
    assert "<script>alert(1)</script>" in page.text
    assert "\x1b" not in text
    assert "\0" not in text


def test_fenced_code_becomes_a_block_and_other_text_stays_as_it_is(minicpm, toy, tmp_path):
    prompt = "What does\n\n```python\nif a < b:\n    pass\n```\n\nprint?  **No** markdown."
    file = tmp_path / "out.html"
    minicpm("run", "-m", toy, *GREEDY, "--html", file, prompt)
    text = file.read_text(encoding="utf-8")
    assert "What does<pre><code>if a &lt; b:\n    pass\n</code></pre>print?  **No** markdown." in text


def test_the_page_of_a_vote_shows_the_counts_and_all_samples(minicpm, toy, tmp_path):
    sampled = ("--temperature", "1", "--max-tokens", "6", "--samples", "3", "--seed", "3")
    file = tmp_path / "out.html"
    outcome = minicpm("run", "-m", toy, *sampled, "--vote", "--json", "--html", file, "hello")
    page = Reader(file.read_text(encoding="utf-8"))
    answers = [
        json.loads(line)["text"].strip()
        for line in minicpm("run", "-m", toy, *sampled, "--json", "hello").out.splitlines()
    ]
    assert all(printable(answer) in page.text for answer in answers)
    for answer, count in json.loads(outcome.out)["vote"]["counts"]:
        assert f"{answer or 'no answer'}{count}" in page.text


@pytest.mark.parametrize("content", [b"<p>mine</p>", b"", b"\xff\xfe"], ids=["page", "empty", "binary"])
def test_a_file_that_is_no_page_of_ours_is_never_replaced(minicpm, toy, tmp_path, content):
    file = tmp_path / "mine.html"
    file.write_bytes(content)
    outcome = minicpm("run", "-m", "there-is-no-such-model", "--html", file, "hello")  # before a model is looked for
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"minicpm: {file}: exists and is not a page that --html wrote; name another file\n"
    assert file.read_bytes() == content


def test_an_earlier_page_is_replaced(minicpm, toy, tmp_path):
    file = tmp_path / "out.html"
    for prompt in ("rabbit", "mountain"):
        assert minicpm("run", "-m", toy, *GREEDY, "--html", file, prompt).code == 0
    page = file.read_text(encoding="utf-8")
    assert ">mountain<" in page and ">rabbit<" not in page


def test_a_file_that_appears_meanwhile_is_not_replaced(minicpm, toy, tmp_path, monkeypatch):
    file = tmp_path / "out.html"
    monkeypatch.setattr("minicpm.cli.verbs.run.say", lambda text: file.write_text("mine", encoding="utf-8"))
    outcome = minicpm("run", "-m", toy, *GREEDY, "--html", file, "hello")
    assert outcome.code == 2 and "exists and is not a page" in outcome.err
    assert file.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "--html needs the name of a file"),
        ("-", "--html needs the name of a file"),
        ("pages/", "--html needs the name of a file"),
        ("folder", "folder: is a folder; name a file in it"),
        ("dangling", "dangling: a symbolic link to nothing"),
        ("mine.txt/page.html", "mine.txt is not a folder"),
        ("/dev/null", "/dev/null: exists and is not a page"),
    ],
)
def test_a_place_where_no_page_can_be_is_refused_before_anything_is_done(minicpm, tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("mine.txt").write_text("mine", encoding="utf-8")
    Path("dangling").symlink_to("nowhere")
    outcome = minicpm("run", "-m", "there-is-no-such-model", "--html", name, "hello")
    assert (outcome.code, outcome.out) == (2, "")
    assert said in outcome.err and outcome.err.count("\n") == 1
