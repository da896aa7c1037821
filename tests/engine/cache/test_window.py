"""Texts under a sliding window: they release blocks, later texts reuse them, and promises stay within the budget."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.cache.test_blocks import (
    TokenPool,
    adapters,
    check_counts,
    check_nothing_stays,
    check_tree,
    compute,
    rope_key,
    texts,
)
from minicpm.engine.cache.blocks import BLOCK_TOKENS, blocks_of
from minicpm.engine.cache.sliding_window import SlidingWindow
from minicpm.engine.cache.window import WindowCache, WindowSequence
from minicpm.errors import GenerationError

WINDOW = SlidingWindow(32, 16, slack_tokens=16, step_tokens=32)  # holds 8 blocks at most


def needed(sequence: WindowSequence) -> list[int]:
    """Places of the tokens that the next one attends to."""
    first = BLOCK_TOKENS * WINDOW.first_block(sequence.length)
    return [*range(min(WINDOW.sinks, sequence.length)), *range(max(WINDOW.sinks, first), sequence.length)]


def is_whole(sequence: WindowSequence) -> bool:
    content = sequence.pool.content  # type: ignore[attr-defined]
    return all(
        content[sequence.table[i // BLOCK_TOKENS]][i % BLOCK_TOKENS] == (sequence.root, i, sequence.token_ids[i])
        for i in needed(sequence)
    )


def opened(cache: WindowCache, prompt: Sequence[int], plan: int = 10_000, *, keeps_all: bool = False) -> WindowSequence:
    sequence = cache.open(prompt, plan, 100, keeps_all=keeps_all)
    assert sequence is not None
    return sequence


def read(sequence: WindowSequence, tokens: Sequence[int]) -> None:
    for start in range(0, len(tokens), WINDOW.step_tokens):
        compute(sequence, tokens[start : start + WINDOW.step_tokens])


def test_a_text_of_any_length_takes_the_blocks_of_its_sinks_and_its_window():
    cache = WindowCache(TokenPool(WINDOW.held_blocks), rope_key, WINDOW)
    sequence = opened(cache, [1])
    for token in range(1000):
        compute(sequence, [token])
        assert is_whole(sequence)
    cache.close(sequence)
    assert cache.usage().held_tokens == 0


def test_the_next_turn_of_a_long_conversation_computes_what_is_new_alone():
    cache = WindowCache(TokenPool(2 * WINDOW.held_blocks), rope_key, WINDOW)
    text = [*range(2000)]
    first = opened(cache, text)
    read(first, text)
    cache.close(first)
    other = opened(cache, [5] * 80)  # takes the memory of the blocks that the text has released
    read(other, [5] * 80)
    cache.close(other)
    second = opened(cache, [*text, 1, 2, 3])
    assert second.length == 2000
    assert is_whole(second)


def test_a_text_cannot_begin_where_its_window_is_gone():
    cache = WindowCache(TokenPool(WINDOW.held_blocks), rope_key, WINDOW)
    text = [*range(1000)]
    first = opened(cache, text)
    read(first, text)
    cache.close(first)
    second = opened(cache, [*text[:500], 1])
    assert second.length < 100
    assert is_whole(second)


def test_two_texts_share_their_windows_until_one_goes_on():
    cache = WindowCache(TokenPool(2 * WINDOW.held_blocks), rope_key, WINDOW)
    text = [*range(320)]
    first = opened(cache, [*text, 1])
    read(first, text)
    second = opened(cache, [*text, 2])
    assert second.length == 320
    assert second.blocks[-2:] == first.blocks[-2:]
    for token in range(200):
        compute(first, [token])
        compute(second, [1000 + token])
        assert is_whole(first) and is_whole(second)


def test_sharing_a_window_promises_no_block_twice():
    """The second text needs its own window blocks as soon as the first has released them."""
    text = [*range(320)]
    needed_blocks = 2 * WINDOW.held_blocks - WINDOW.sink_blocks
    for blocks in (needed_blocks - 1, needed_blocks):
        cache = WindowCache(TokenPool(blocks), rope_key, WINDOW)
        first = opened(cache, [*text, 1])
        read(first, text)
        second = cache.open([*text, 2], 10_000, 100)
        assert (second is None) == (blocks < needed_blocks)
    assert second is not None
    for number in range(10):
        for sequence in (first, second):
            compute(sequence, [1000 * id(sequence) + number] * WINDOW.step_tokens)
            assert is_whole(sequence)
    cache.close(first)
    cache.close(second)
    assert cache._promised == 0


def test_a_block_that_another_text_goes_on_behind_is_not_written_again():
    cache, text = WindowCache(TokenPool(60), rope_key, WINDOW), [*range(400)]
    first = opened(cache, text)
    read(first, text)
    second = opened(cache, [*text[:96], 1], 200, keeps_all=True)
    assert second.length == 96
    second.truncate(90)
    compute(second, [1000, 1001])
    assert is_whole(second)
    compute(first, [1002])
    assert is_whole(first)
    cache.close(second)
    assert opened(cache, [*text[:96], 1]).length == 96


def test_a_text_that_computes_what_another_left_behind_is_promised_no_more_for_it():
    cache, text = WindowCache(TokenPool(60), rope_key, WINDOW), [*range(200)]
    first, second = opened(cache, text), opened(cache, text)
    read(second, text)
    cache.close(second)
    read(first, text)
    assert is_whole(first)
    cache.close(first)
    assert cache._promised == 0


def test_a_text_can_be_cut_back_by_the_slack_and_no_more():
    cache = WindowCache(TokenPool(20), rope_key, WINDOW)
    sequence = opened(cache, [1])
    read(sequence, [*range(400)])
    sequence.truncate(384)
    assert is_whole(sequence)
    with pytest.raises(GenerationError, match="at most 16 tokens"):
        sequence.truncate(300)
    assert sequence.length == 384


def test_a_text_that_keeps_all_can_be_cut_to_any_length():
    cache = WindowCache(TokenPool(30), rope_key, WINDOW)
    sequence = opened(cache, [1], 400, keeps_all=True)
    read(sequence, [*range(400)])
    for length in (200, 37, 1):
        sequence.truncate(length)
        assert is_whole(sequence)


def test_windows_and_sinks_are_whole_blocks():
    for tokens, sinks in ((0, 16), (20, 16), (32, 0), (32, 4)):
        with pytest.raises(ValueError, match="multiple of 16"):
            SlidingWindow(tokens, sinks)


class Machine(RuleBasedStateMachine):
    """Long texts of a small alphabet are opened, grown, truncated and closed, in a pool that is too small for all."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = TokenPool(19)
        self.cache = WindowCache(self.pool, rope_key, WINDOW)
        self.open: list[tuple[WindowSequence, int]] = []  # with their plans
        self.texts: list[list[int]] = [[]]

    @rule(
        data=st.data(),
        tail=texts(40),
        rope_length=st.sampled_from([100, 100, 300]),
        keeps_all=st.sampled_from([False, False, False, True]),
        adapter=adapters,
    )
    def come(
        self, data: st.DataObject, tail: list[int], rope_length: int, keeps_all: bool, adapter: str | None
    ) -> None:
        known = data.draw(st.sampled_from(self.texts))
        prompt = [*known[: data.draw(st.integers(0, len(known)))], *tail]
        plan = len(prompt) + data.draw(st.integers(0, 300))
        if (blocks_of(plan) if keeps_all else min(blocks_of(plan), WINDOW.held_blocks)) > self.pool.blocks:
            return
        sequence = self.cache.open(prompt, plan, rope_length, keeps_all=keeps_all, adapter=adapter)
        if sequence is None:
            assert self.open, "a plan that fits the pool waits for nobody"
            return
        assert sequence.root == (rope_key(rope_length), adapter)
        assert sequence.token_ids == prompt[: sequence.length] and sequence.length < len(prompt)
        self.open.append((sequence, plan))
        self.texts.append(prompt)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), tokens=texts(8), times=st.integers(1, 20))
    def grow(self, data: st.DataObject, tokens: list[int], times: int) -> None:
        """Within its plan a text never fails."""
        sequence, plan = data.draw(st.sampled_from(self.open))
        tokens = (tokens * times)[: plan - sequence.length]
        read(sequence, tokens)
        self.texts.append([*sequence.token_ids])

    @precondition(lambda self: self.open)
    @rule(data=st.data(), more=st.integers(1, 100))
    def plan_more(self, data: st.DataObject, more: int) -> None:
        index = data.draw(st.integers(0, len(self.open) - 1))
        sequence, plan = self.open[index]
        if self.cache.grow(sequence, plan + more):
            self.open[index] = (sequence, plan + more)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), back=st.integers(1, 16))
    def draft_and_reject(self, data: st.DataObject, back: int) -> None:
        sequence, plan = data.draw(st.sampled_from(self.open))
        length = sequence.length
        drafts = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=back))[: plan - length]
        if drafts:
            compute(sequence, drafts)
            sequence.truncate(length + data.draw(st.integers(0, len(drafts) - 1)))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.open) - 1))
        self.cache.close(self.open.pop(index)[0])

    @rule()
    def drop_idle(self) -> None:
        self.cache.drop_idle()

    @invariant()
    def every_text_finds_what_it_attends_to(self) -> None:
        assert all(is_whole(sequence) for sequence, _ in self.open)

    @invariant()
    def every_block_is_free_or_idle_or_counted(self) -> None:
        users = [0] * self.pool.blocks
        sinks = WINDOW.sink_blocks
        for sequence, _ in self.open:
            blocks = sequence.blocks[:sinks] + sequence.blocks[max(sinks, sequence.gone_to) :]
            assert len({*blocks}) == len(blocks)
            assert sequence.keeps_all or len(blocks) <= WINDOW.held_blocks
            for block in blocks:
                users[block] += 1
        check_counts(self.cache, users)

    @invariant()
    def a_cached_block_stands_behind_a_cached_one(self) -> None:
        ghosts = {block for block in self.cache._keys if block >= self.pool.blocks}
        behind = {parent for _, parent in self.cache._children}
        assert ghosts <= behind
        check_tree(self.cache)

    def teardown(self) -> None:
        for sequence, _ in self.open:
            self.cache.close(sequence)
        check_nothing_stays(self.cache)


Machine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestRandomInterleavings = Machine.TestCase
