"""The scheduler, step by step: running and waiting requests; every answer equals the one computed alone."""

from __future__ import annotations

import numpy as np
import pytest

from minicpm import LLM, SamplingParams
from minicpm.engine import scheduler as scheduling
from minicpm.engine.request import Completion, Piece, Request
from minicpm.engine.scheduler import Scheduler
from minicpm.errors import GenerationError

SAMPLED = SamplingParams(seed=3, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(threads=1, max_batch=64)


def small(llm: LLM, tokens: int, **options) -> LLM:
    """The same model with a cache of so many tokens."""
    budget = tokens * llm.backend.cache_bytes_per_token
    return LLM(llm.folder, threads=1, kv_cache_bytes=budget, **{"max_batch": 64, **options})


def prompts_of(*lengths: int, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(300, 6000, length).tolist() for length in lengths]


def added(llm: LLM, scheduler: Scheduler, prompts: list[list[int]], params: SamplingParams):
    requests = [llm.new_request(prompt, params, is_chat=False, index=i) for i, prompt in enumerate(prompts)]
    for request in requests:
        scheduler.add(request)
    return requests


def completed(scheduler: Scheduler) -> dict[int, Completion]:
    """Step to the end, the budget kept at every step; completions by index."""
    found = {}
    while scheduler.is_busy:
        for _, event in scheduler.step():
            assert isinstance(event, Piece), event
            if event.completion is not None:
                found[event.index] = event.completion
        usage = scheduler.cache_usage()
        assert 0 <= usage.held_tokens + usage.idle_tokens <= usage.tokens
    return found


@pytest.mark.parametrize("tokens", [320, 1024])
def test_requests_that_give_way_for_lack_of_memory_say_what_they_say_alone(llm: LLM, tokens: int):
    prompts = prompts_of(5, 90, 33, 16, 61, 120, 8, 40, 77, 15)
    params = SamplingParams(seed=3, ignore_eos=True, max_tokens=180, logprobs=1)
    crowded = small(llm, tokens)
    scheduler = crowded.new_scheduler()
    added(crowded, scheduler, prompts, params)
    found = completed(scheduler)
    assert scheduler.work.preemptions > 0
    for index, prompt in enumerate(prompts):
        alone = llm.generate([prompt], params)[0]
        assert (found[index].ids, found[index].logprobs) == (alone.ids, alone.logprobs)


def test_streams_that_may_take_a_whole_context_each_share_a_budget_of_two(llm: LLM):
    crowded = small(llm, 2 * llm.context_length, max_batch=256)
    scheduler = crowded.new_scheduler()
    requests = added(crowded, scheduler, prompts_of(*[6] * 100), SAMPLED)
    speaking = {request for _ in range(8) for request, _ in scheduler.step()}
    assert len(speaking) > 20
    for request in requests:
        scheduler.cancel(request)
    assert scheduler.cache_usage().held_tokens == 0 and not scheduler.is_busy


def test_running_streams_get_a_token_in_every_step_of_a_long_prompt(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scheduling, "STEP_S", 0.0)  # the smallest chunks
    scheduler = llm.new_scheduler()
    params = SamplingParams(seed=3, ignore_eos=True, max_tokens=200)
    streams = added(llm, scheduler, prompts_of(4, 5, 6), params)
    scheduler.step()
    (long,) = added(llm, scheduler, prompts_of(1500, seed=1), SamplingParams(seed=3, max_tokens=4))
    steps = 0
    while not long.new_ids:
        assert {request for request, _ in scheduler.step()} >= set(streams)
        steps += 1
    assert steps >= 1500 // scheduling.CHUNKS[-1]
    scheduler.close()


def test_a_prompt_in_small_chunks_beside_streams_gives_the_text_of_one_in_large_ones(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
):
    prompts = prompts_of(4, 700, 30)
    params = SamplingParams(seed=3, ignore_eos=True, max_tokens=50)
    large = [completion.ids for completion in small(llm, 4096).generate(prompts, params)]
    monkeypatch.setattr(scheduling, "STEP_S", 0.0)
    assert [completion.ids for completion in small(llm, 4096).generate(prompts, params)] == large


def test_a_short_prompt_behind_a_long_one_is_answered_first(llm: LLM):
    scheduler = llm.new_scheduler()
    long, short = added(llm, scheduler, prompts_of(1800, 20, seed=2), SAMPLED)
    while not short.new_ids:
        scheduler.step()
    assert not long.new_ids
    scheduler.close()


def test_short_prompts_that_keep_coming_do_not_hold_a_long_one_up(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scheduling, "PREFILL_CHUNK_TOKENS", 64)
    scheduler = llm.new_scheduler()
    params = SamplingParams(seed=3, max_tokens=1)
    (long,) = added(llm, scheduler, prompts_of(400, seed=4), params)
    for number in range(400 // scheduling.CHUNKS[-1] + 1):
        added(llm, scheduler, prompts_of(64, 64, seed=100 + number), params)
        scheduler.step()
    assert long.finish_reason is not None
    scheduler.close()


def test_copies_of_a_prompt_that_come_together_compute_it_once(llm: LLM):
    fresh = small(llm, 4096)
    scheduler = fresh.new_scheduler()
    (prompt,) = prompts_of(600)
    params = SamplingParams(seed=3, max_tokens=8)
    for choice in range(8):
        scheduler.add(fresh.new_request(prompt, params, is_chat=False, index=choice, choice=choice))
    found = completed(scheduler)
    assert len({completion.ids for completion in found.values()}) > 1
    assert scheduler.work.prompt_tokens == 8 * 600
    assert scheduler.work.cached_prompt_tokens >= 7 * (600 - 16)


def test_a_request_waiting_for_anothers_prompt_goes_on_when_that_one_is_cancelled(llm: LLM):
    scheduler = small(llm, 4096).new_scheduler()
    first, second = added(llm, scheduler, prompts_of(900) * 2, SamplingParams(seed=3, max_tokens=2))
    scheduler.step()
    assert second.sequence is None
    scheduler.cancel(first)
    assert list(completed(scheduler)) == [1]


def test_a_request_too_large_for_now_lets_small_ones_pass_but_not_for_ever(llm: LLM):
    crowded = small(llm, 640)
    scheduler = crowded.new_scheduler()
    added(crowded, scheduler, prompts_of(300), SamplingParams(seed=3, ignore_eos=True, max_tokens=200))
    scheduler.step()
    (giant,) = added(crowded, scheduler, prompts_of(500, seed=7), SamplingParams(seed=3, max_tokens=4))
    brief = SamplingParams(seed=3, max_tokens=1)
    passed = 0
    for number in range(3 * scheduling.MOST_OVERTAKING):
        (one,) = added(crowded, scheduler, prompts_of(9, seed=200 + number), brief)
        scheduler.step()
        passed += one.finish_reason is not None
        if giant.finish_reason is not None:
            break
    assert passed > 0
    assert giant.overtaken <= scheduling.MOST_OVERTAKING
    completed(scheduler)
    assert giant.finish_reason is not None


def test_an_answer_alone_with_too_little_memory_left_by_others_is_an_error(llm: LLM):
    crowded = small(llm, 256)
    stream = crowded.stream_batch(prompts_of(100), SAMPLED, max_tokens=100)
    next(stream)
    with pytest.raises(GenerationError, match="other unfinished streams"):
        crowded.generate(prompts_of(100, seed=1), SAMPLED, max_tokens=100)
    stream.close()
    assert crowded.generate(prompts_of(100, seed=1), SAMPLED, max_tokens=100)


def test_one_request_whose_logits_are_damaged_fails_alone(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    scheduler = llm.new_scheduler()
    good, bad = added(llm, scheduler, prompts_of(12, 13), SamplingParams(seed=3, max_tokens=6))
    forward = llm.backend.forward

    def damaged(rows):
        found = forward(rows)
        for row, logits in zip(rows, found):
            if row.sequence is bad.sequence:
                logits[:] = np.nan
        return found

    monkeypatch.setattr(llm.backend, "forward", damaged)
    events = [event for _ in range(8) if scheduler.is_busy for event in scheduler.step()]
    errors = [(request, event) for request, event in events if isinstance(event, Exception)]
    assert [request for request, _ in errors] == [bad] and "NaN" in str(errors[0][1])
    monkeypatch.undo()
    assert tuple(good.new_ids) == llm.generate([good.prompt_ids], SamplingParams(seed=3, max_tokens=6))[0].ids


def test_no_more_requests_than_the_limit_pass_one_that_does_not_fit(llm: LLM, monkeypatch: pytest.MonkeyPatch):
    """Streams always hold too much for it, and there is always room for one more of them."""
    monkeypatch.setattr(scheduling, "MOST_OVERTAKING", 5)
    crowded = small(llm, 640)
    scheduler = crowded.new_scheduler()
    stream = SamplingParams(seed=3, ignore_eos=True, max_tokens=40)
    added(crowded, scheduler, prompts_of(30, 31, 32, 33), stream)
    scheduler.step()
    (giant,) = added(crowded, scheduler, prompts_of(500, seed=7), SamplingParams(seed=3, max_tokens=4))
    later: list[Request] = []
    for number in range(300):
        if number % 10 == 0:
            later += added(crowded, scheduler, prompts_of(30, seed=200 + number), stream)
        scheduler.step()
        if giant.sequence is not None:
            break
    assert giant.sequence is not None
    assert sum(request.sequence is not None for request in later) == 5
    scheduler.close()


def test_equal_requests_finish_in_the_order_they_came_though_some_are_preempted(llm: LLM):
    crowded = small(llm, 320, lookup="off")  # drafts that are right would let one get ahead
    scheduler = crowded.new_scheduler()
    added(crowded, scheduler, prompts_of(*[20] * 8), SamplingParams(seed=3, ignore_eos=True, max_tokens=100))
    assert [*completed(scheduler)] == [*range(8)]
    assert scheduler.work.preemptions > 0


def test_a_request_that_gives_way_waits_behind_an_earlier_one_that_it_had_passed(llm: LLM):
    """Of 15 blocks the giant needs 14; until the one before it grows, there is room for the one behind it."""
    crowded = small(llm, 240, lookup="off")
    scheduler = crowded.new_scheduler()
    for index, (length, answer) in enumerate([(5, 3), (16, 144), (200, 24), (20, 150)]):
        params = SamplingParams(seed=3, ignore_eos=True, max_tokens=answer)
        scheduler.add(crowded.new_request(prompts_of(length, seed=index)[0], params, is_chat=False, index=index))
    assert [*completed(scheduler)] == [0, 1, 2, 3]
    assert scheduler.work.preemptions == 1


def test_the_request_that_came_last_gives_way(llm: LLM):
    crowded = small(llm, 432)
    scheduler = crowded.new_scheduler()
    requests = added(
        crowded, scheduler, prompts_of(20, 20, 20), SamplingParams(seed=3, ignore_eos=True, max_tokens=200)
    )
    while not scheduler.work.preemptions:
        speaking = {request for request, _ in scheduler.step()}
    assert speaking == {*requests[:2]}
    scheduler.close()


def test_of_two_the_one_that_came_last_gives_way_even_if_it_ran_first(llm: LLM):
    """The first takes 9 of 20 blocks, so the third overtakes the second, which needs 14."""
    crowded = small(llm, 320)
    scheduler = crowded.new_scheduler()
    requests = []
    for index, (length, answer) in enumerate([(100, 30), (150, 100), (16, 150)]):
        params = SamplingParams(seed=3, ignore_eos=True, max_tokens=answer)
        requests.append(crowded.new_request(prompts_of(length, seed=index)[0], params, is_chat=False, index=index))
        scheduler.add(requests[-1])
    scheduler.step()
    assert requests[1].sequence is None and requests[2].sequence is not None
    while not scheduler.work.preemptions:
        speaking = {request for request, _ in scheduler.step()}
    assert speaking == {requests[1]}
    scheduler.close()
