"""The service: many threads and one model; every answer equals the one computed alone."""

from __future__ import annotations

import json
import queue
import random
import threading
from collections.abc import Iterator

import jsonschema
import numpy as np
import pytest

from minicpm import LLM, Constraint, SamplingParams
from minicpm.engine.request import Completion, Piece
from minicpm.engine.service import Service
from minicpm.errors import GenerationError, QueueFull

PARAMS = SamplingParams(seed=5, max_tokens=24)


class Answer:
    """A submitted request and what was called back about it."""

    def __init__(self, service: Service, prompt: str | list[int], params: SamplingParams = PARAMS, **options):
        self.pieces: list[Piece] = []
        self.started = threading.Event()
        self._end: queue.Queue[Completion | Exception] = queue.Queue()
        options = {"is_chat": True, **options}
        self.ticket = service.submit(prompt, params, on_piece=self._take, on_error=self._end.put, **options)

    def _take(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.started.set()
        if piece.completion is not None:
            self._end.put(piece.completion)

    def result(self) -> Completion:
        end = self._end.get(timeout=60)
        if isinstance(end, Exception):
            raise end
        return end


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(threads=1, max_batch=16)


@pytest.fixture()
def service(llm: LLM) -> Iterator[Service]:
    with Service(llm) as service:
        yield service


def rendered(llm: LLM, question: str) -> str:
    return llm.template.render([{"role": "user", "content": question}])


def test_a_submitted_request_gives_the_text_that_chat_gives(llm: LLM, service: Service):
    answer = Answer(service, rendered(llm, "Why is the sky blue?"))
    completion = answer.result()
    assert "".join(piece.text for piece in answer.pieces) == completion.text
    assert completion.text == service.call(lambda: llm.chat("Why is the sky blue?", PARAMS)).text


def test_choices_of_one_seed_differ_and_the_first_is_the_one_without_a_choice(llm: LLM, service: Service):
    prompt = rendered(llm, "Tell me a story.")
    texts = [answer.result().text for answer in [Answer(service, prompt, choice=choice) for choice in range(3)]]
    assert len(set(texts)) == 3
    assert texts[0] == Answer(service, prompt).result().text


def test_tokens_of_all_pieces_are_those_of_the_completion(llm: LLM, service: Service):
    params = SamplingParams(seed=1, max_tokens=40, logprobs=2, stop=["zzzz", " the end"])
    answer = Answer(service, rendered(llm, "什么是人工智能?"), params)
    completion = answer.result()
    assert [token for piece in answer.pieces for token in piece.tokens] == list(completion.logprobs)


def test_threads_that_submit_and_cancel_at_random_get_what_each_gets_alone(llm: LLM):
    """Little memory, so that requests are preempted; some prompts share a prefix, some answers have a constraint."""
    crowded = LLM(llm.folder, threads=1, max_batch=16, kv_cache_bytes=1500 * llm.backend.cache_bytes_per_token)
    digits = Constraint.regex("[0-9]{4,40}")
    cases = [
        (
            [5, 6, 7] * (number % 5 * 9 + 1) + [300 + number],
            SamplingParams(seed=number, max_tokens=number % 70 + 1, temperature=number % 3 / 2, logprobs=1),
            digits if number % 4 == 0 else None,
        )
        for number in range(48)
    ]
    found: dict[int, Completion] = {}

    def use(service: Service, first: int) -> None:
        dice = random.Random(first)
        answers = []
        for number in range(first, len(cases), 6):
            prompt, params, constraint = cases[number]
            answers.append((number, Answer(service, prompt, params, is_chat=False, constraint=constraint)))
            if dice.random() < 0.5:
                victim = Answer(service, prompt, SamplingParams(ignore_eos=True), is_chat=False)
                if dice.random() < 0.5:
                    victim.started.wait(60)
                victim.ticket.cancel()
        for number, answer in answers:
            found[number] = answer.result()

    with Service(crowded) as service:
        threads = [threading.Thread(target=use, args=(service, first)) for first in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                usage = service.statistics()
                assert 0 <= usage.cache_held_tokens + usage.cache_idle_tokens <= usage.cache_tokens
                thread.join(0.02)
        statistics = service.statistics()
    assert sorted(found) == list(range(len(cases)))
    assert (statistics.cache_held_tokens, statistics.running, statistics.waiting) == (0, 0, 0)
    for number, (prompt, params, constraint) in enumerate(cases):
        alone = llm.generate([prompt], params, constraint=constraint)[0]
        assert (found[number].ids, found[number].logprobs) == (alone.ids, alone.logprobs)


def test_an_answer_of_a_given_form_comes_through_the_service(llm: LLM, service: Service):
    properties = {"n": {"enum": [1, 22]}}
    schema = {"type": "object", "properties": properties, "required": ["n"], "additionalProperties": False}
    form = Constraint.json_schema(schema)
    answer = Answer(service, rendered(llm, "A number, please."), SamplingParams(max_tokens=60), constraint=form)
    jsonschema.validate(json.loads(answer.result().text), schema)
    with pytest.raises(GenerationError, match="cannot be followed"):
        Answer(service, "x", constraint=Constraint.regex("("))


def test_a_prompt_that_can_never_fit_is_refused_by_submit(llm: LLM, service: Service):
    with pytest.raises(GenerationError, match="the context holds"):
        Answer(service, [5] * (llm.context_length + 1))


def test_a_cancelled_request_is_silent_and_frees_its_memory(llm: LLM, service: Service):
    params = SamplingParams(seed=5, ignore_eos=True)
    started = threading.Event()
    ticket = service.submit(
        rendered(llm, "Go on for ever."), params, on_piece=lambda piece: started.set(), on_error=print, is_chat=True
    )
    assert started.wait(60)
    ticket.cancel()
    ticket.cancel()
    other = Answer(service, rendered(llm, "hello"))
    other.result()
    statistics = service.statistics()
    assert (statistics.running, statistics.cache_held_tokens, statistics.outcomes["cancelled"]) == (0, 0, 1)


def test_a_callback_that_fails_ends_its_own_request_only(llm: LLM, service: Service):
    def fail(piece: Piece) -> None:
        raise OSError("the socket is gone")

    service.submit(rendered(llm, "one"), PARAMS, on_piece=fail, on_error=fail, is_chat=True)
    assert Answer(service, rendered(llm, "two")).result().text == service.call(lambda: llm.chat("two", PARAMS)).text
    assert service.statistics().outcomes["cancelled"] == 1


def test_a_full_queue_refuses_and_says_when_to_come_back(llm: LLM):
    with Service(llm, queue_limit=2) as service:
        entered, leave = threading.Event(), threading.Event()

        def hold() -> None:
            entered.set()
            leave.wait(60)

        holder = threading.Thread(target=lambda: service.call(hold))
        holder.start()
        assert entered.wait(60)
        answers = [Answer(service, "a b c"), Answer(service, "d e f")]
        with pytest.raises(QueueFull, match="2 requests are waiting") as refused:
            Answer(service, "g h i")
        leave.set()
        holder.join()
        assert refused.value.retry_after_s >= 1
        assert all(answer.result().finish_reason for answer in answers)
        assert service.statistics().outcomes["refused"] == 1


def test_closing_lets_requests_finish_and_refuses_new_ones(llm: LLM):
    service = Service(llm)
    answers = [Answer(service, rendered(llm, f"Question {n}")) for n in range(4)]
    service.close(60)
    assert all(answer.result().usage.completion_tokens for answer in answers)
    with pytest.raises(GenerationError, match="closing"):
        Answer(service, "late")


def test_closing_at_once_ends_requests_with_an_error(llm: LLM):
    service = Service(llm)
    answer = Answer(service, rendered(llm, "Go on"), SamplingParams(ignore_eos=True))
    service.close(0)
    with pytest.raises(GenerationError, match="closed"):
        answer.result()


def test_embeddings_beside_streams_are_those_without(llm: LLM, service: Service):
    texts = ["A cat sleeps.", "A kitten is asleep.", "山"]
    answer = Answer(service, rendered(llm, "And now?"))
    vectors = service.embed(texts).result()
    assert answer.result().text == service.call(lambda: llm.chat("And now?", PARAMS)).text
    assert np.array_equal(vectors, service.call(lambda: llm.embed(texts)))


def test_embeddings_of_long_and_many_texts_beside_streams_are_those_without(llm: LLM, service: Service):
    dice = random.Random(1)
    texts = [[dice.randrange(300, 6000) for _ in range(length)] for length in (1500, 3, 700, *[9] * 120)]
    answers = [Answer(service, rendered(llm, f"Count to {n}"), SamplingParams(seed=n, max_tokens=60)) for n in range(4)]
    vectors = service.embed(texts).result()
    for number, answer in enumerate(answers):
        alone = service.call(
            lambda n=number: llm.chat(f"Count to {n}", SamplingParams(seed=n, max_tokens=60))  # type: ignore[misc]
        )
        assert answer.result().ids == alone.ids
    assert np.array_equal(vectors, service.call(lambda: llm.embed(texts)))


def test_embeddings_wait_for_the_memory_that_streams_hold(llm: LLM):
    crowded = LLM(llm.folder, threads=1, kv_cache_bytes=256 * llm.backend.cache_bytes_per_token)
    with Service(crowded) as service:
        streams = [Answer(service, [5, 6, 7], SamplingParams(seed=n, ignore_eos=True, max_tokens=200)) for n in (1, 2)]
        assert streams[0].started.wait(60)
        vectors = service.embed([[9] * 250]).result()
        assert [len(stream.result().ids) for stream in streams] == [200, 200]
    assert np.array_equal(vectors, llm.embed([[9] * 250]))
    with pytest.raises(GenerationError, match="text 1 may take 257 tokens"):
        crowded.embed([[9] * 257])


def test_log_probabilities_of_prompts_beside_streams_are_those_without(llm: LLM, service: Service):
    dice = random.Random(1)
    prompts = [[dice.randrange(300, 6000) for _ in range(length)] for length in (1500, 3, 700, *[9] * 60)]
    answer = Answer(service, rendered(llm, "Count to 4"), SamplingParams(seed=4, max_tokens=60))
    scored = service.prompt_logprobs(prompts, 1).result()
    alone = service.call(lambda: llm.chat("Count to 4", SamplingParams(seed=4, max_tokens=60)))
    assert answer.result().ids == alone.ids
    expected = service.call(lambda: llm.loglikelihood([(ids[:1], [ids[1:]]) for ids in prompts]))
    for ids, tokens, (one,) in zip(prompts, scored, expected):
        assert [token.token_id for token in tokens] == ids
        assert (tokens[0].logprob, tokens[0].top_logprobs) == (None, ())
        # exp in single precision where the oracle's is in double
        assert sum(token.logprob for token in tokens[1:]) == pytest.approx(one.logprob, abs=1e-5 * len(ids))


def test_of_a_long_prompts_logits_only_a_part_is_held(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("minicpm.engine.scoring.LOGITS_BYTES", 7 * 4 * llm.backend.vocab_size)
    computed = []
    with Service(llm) as service:
        forward = llm.backend.forward
        monkeypatch.setattr(
            llm.backend, "forward", lambda rows: [computed.append(len(rows[0].token_ids)), forward(rows)][1]
        )
        parts = service.prompt_logprobs([[*range(300, 320)]], 0).result()
        monkeypatch.undo()
        assert computed == [7, 7, 6]
        assert service.prompt_logprobs([[*range(300, 320)]], 0).result() == parts


def test_work_that_nobody_waits_for_any_more_is_not_done(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    computed = []
    forward = llm.backend.forward
    monkeypatch.setattr(
        llm.backend, "forward", lambda rows: [computed.extend(list(r.token_ids) for r in rows), forward(rows)][1]
    )
    with Service(llm) as service:
        held = threading.Event()
        blocker = threading.Thread(target=service.call, args=(lambda: held.wait(60),))
        blocker.start()
        left = service.prompt_logprobs([[5, 6, 7]] * 3, 1)
        assert left.cancel()
        held.set()
        blocker.join()
        assert service.prompt_logprobs([[8, 9]], 1).result()[0][1].logprob < 0
    assert computed == [[8, 9]]


def test_too_much_work_is_refused(llm: LLM):
    with Service(llm, queue_limit=1) as service:
        held, begun = threading.Event(), threading.Event()
        blocker = threading.Thread(target=service.call, args=(lambda: (begun.set(), held.wait(60)),))
        blocker.start()
        assert begun.wait(60)
        waiting = service.embed([[5, 6]])
        with pytest.raises(QueueFull):
            service.embed([[5, 6]])
        held.set()
        blocker.join()
        assert waiting.result().shape[0] == 1


def test_an_error_inside_a_call_is_the_callers(service: Service):
    with pytest.raises(ZeroDivisionError):
        service.call(lambda: 1 // 0)
