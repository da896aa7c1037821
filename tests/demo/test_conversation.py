"""One browser session's conversation: rounds, stopping, failing, taking back."""

from __future__ import annotations

import asyncio

from demo.scripted_source import ScriptedSource
from minicpm.demo.conversation import Conversation
from minicpm.demo.words import WORDS, language_of, note_text
from minicpm.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0)


def ask(talk: Conversation, source: ScriptedSource, question: str, system: str = "") -> list[str]:
    """All states of the answer."""

    async def states() -> list[str]:
        return [talk.messages[-1]["content"] async for _ in talk.ask(source, question, system, GREEDY) if talk.messages]

    return asyncio.run(states())


def contents(talk: Conversation) -> list[str]:
    return [message["content"] for message in talk.messages]


def test_rounds_add_up_and_the_system_prompt_goes_in_front():
    source, talk = ScriptedSource(["Bei", "jing"]), Conversation()
    assert ask(talk, source, "Capital?", "Be brief.")[-1] == "Beijing"
    ask(talk, source, "Sure?", " ")
    assert contents(talk) == ["Capital?", "Beijing", "Sure?", "Beijing"]
    assert [m["role"] for m in source.asked[0]] == ["system", "user"]
    assert [m["role"] for m in source.asked[1]] == ["user", "assistant", "user"]
    assert talk.note.progress.finish_reason == "stop"


def test_stop_ends_the_work_and_keeps_what_was_said():
    source, talk = ScriptedSource(["So ", "far"], waits=True), Conversation()

    async def run() -> None:
        async for _ in talk.ask(source, "Count.", "", GREEDY):
            if talk.messages and talk.messages[-1]["content"]:
                talk.stop()

    asyncio.run(run())
    assert talk.messages[-1]["content"].startswith("So ")
    assert (source.ended, talk.is_running, talk.note.is_stopped) == (1, False, True)


def test_a_stop_before_the_first_word_leaves_no_round():
    source, talk = ScriptedSource(waits=True), Conversation()

    async def run() -> None:
        async for _ in talk.ask(source, "Count.", "", GREEDY):
            talk.stop()

    asyncio.run(run())
    assert (talk.messages, talk.is_running) == ([], False)


def test_closing_the_states_ends_the_work():
    source, talk = ScriptedSource(["a"], waits=True), Conversation()

    async def run() -> None:
        states = talk.ask(source, "Count.", "", GREEDY)
        await anext(states)
        await anext(states)
        await states.aclose()

    asyncio.run(run())
    assert (source.ended, talk.is_running) == (1, False)


def test_a_second_question_waits_for_nobody_and_changes_nothing():
    source, talk = ScriptedSource(["a"], waits=True), Conversation()

    async def run() -> None:
        states = talk.ask(source, "one", "", GREEDY)
        await anext(states)
        assert [state async for state in talk.ask(source, "two", "", GREEDY)] == []
        assert talk.undo() == ""
        talk.clear()
        assert contents(talk) == ["one", ""]
        await states.aclose()

    asyncio.run(run())


def test_a_failure_is_a_sentence_and_keeps_only_rounds_with_an_answer():
    talk = Conversation()
    ask(talk, ScriptedSource(error="the queue is full"), "one")
    assert (talk.messages, talk.note.error) == ([], "the queue is full")
    ask(talk, ScriptedSource(["half"], error="the engine has ended"), "two")
    assert contents(talk) == ["two", "half"]
    assert note_text(talk.note, "en").endswith("⚠ the engine has ended")


def test_undo_takes_back_the_last_round_and_clear_all():
    source, talk = ScriptedSource(["yes"]), Conversation()
    ask(talk, source, "one")
    ask(talk, source, "two")
    assert talk.undo() == "two"
    assert contents(talk) == ["one", "yes"]
    talk.clear()
    assert (talk.messages, talk.undo()) == ([], "")


def test_a_fast_answer_is_shown_in_few_states_and_whole_at_last():
    talk = Conversation()
    states = ask(talk, ScriptedSource(["x"] * 2000), "Go.")
    assert states[-1] == "x" * 2000
    assert len(states) < 2000


def test_both_languages_have_the_same_words():
    assert set(WORDS["en"]) == set(WORDS["zh"])
    assert [language_of(header) for header in ("zh-CN,zh;q=0.9", "en-US", "", "fr, zh")] == ["zh", "en", "en", "en"]
