"""Blocks of keys and values: shared, counted and evicted, within the budget, and always with the right tokens."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from minicpm.engine.backend import KVSequence
from minicpm.engine.cache.blocks import BLOCK_TOKENS, BlockCache, BlockSequence, Root, SequenceCache, blocks_of
from minicpm.engine.prompt import EmbeddingSpan
from minicpm.errors import GenerationError


class TokenPool:
    """A pool whose memory holds the tokens themselves, so that a text's table can be read back."""

    def __init__(self, blocks: int):
        self.blocks = blocks
        self.content: list[list[tuple[Root, int, int] | None]] = [[None] * BLOCK_TOKENS for _ in range(blocks)]
        self.released: list[int] = []

    def copy(self, source: int, destination: int) -> None:
        assert source != destination
        self.content[destination] = [*self.content[source]]

    def release(self, blocks: Sequence[int]) -> None:
        self.released = [*blocks]
        for block in blocks:
            self.content[block] = [None] * BLOCK_TOKENS


def free_blocks(cache: BlockCache) -> int:
    return blocks_of(cache.tokens - cache.usage().held_tokens) - idle_blocks(cache)


def idle_blocks(cache: BlockCache) -> int:
    return blocks_of(cache.usage().idle_tokens)


def rope_key(length: int) -> float:
    return 1e4 if length <= 200 else 2e4


def content_ids(key: bytes, positions: int) -> list[int]:
    """The content ids of a span."""
    return EmbeddingSpan(np.zeros((positions, 1), np.float32), key).content_ids


def texts(most_parts: int) -> st.SearchStrategy[list[int]]:
    """Texts of a small alphabet: two tokens, and three spans, two of which are as long as each other."""
    spans = (content_ids(b"a", 11), content_ids(b"b", 11), content_ids(b"b", 20))
    part = st.sampled_from(([0], [1], [0], [1], [0], [1], *spans))
    return st.lists(part, min_size=1, max_size=most_parts).map(lambda parts: [*chain.from_iterable(parts)])


adapters = st.sampled_from([None, None, "one", "other"])


def compute(sequence: BlockSequence, token_ids: Sequence[int]) -> None:
    """What a forward pass does, with tokens and their places for keys and values."""
    start = sequence.length
    sequence.reserve(start + len(token_ids))
    assert sequence.table.tolist() == sequence.blocks
    for place, token in enumerate(token_ids, start=start):
        block = sequence.pool.content[sequence.table[place // BLOCK_TOKENS]]  # type: ignore[attr-defined]
        block[place % BLOCK_TOKENS] = (sequence.root, place, token)
    sequence.extend(token_ids)


def held(sequence: BlockSequence) -> list[object]:
    """The content of the table's blocks, for every token that the sequence holds."""
    content = sequence.pool.content  # type: ignore[attr-defined]
    return [content[sequence.table[i // BLOCK_TOKENS]][i % BLOCK_TOKENS] for i in range(sequence.length)]


def expected(sequence: BlockSequence) -> list[object]:
    return [(sequence.root, place, token) for place, token in enumerate(sequence.token_ids)]


class TestBlockCache:
    def opened(self, cache: BlockCache, prompt: Sequence[int], plan: int | None = None) -> BlockSequence:
        sequence = cache.open(prompt, plan or len(prompt) + 8, 100)
        assert sequence is not None
        return sequence

    def test_a_prompt_finds_the_blocks_of_a_running_text(self):
        cache, prompt = BlockCache(TokenPool(12), rope_key), [*range(40)]
        first = self.opened(cache, prompt)
        compute(first, prompt)
        second = self.opened(cache, [*prompt[:35], 99])
        assert second.length == 32
        assert second.blocks == first.blocks[:2]
        compute(second, [*prompt[32:35], 99])
        assert held(first) == expected(first) and held(second) == expected(second)
        assert free_blocks(cache) == 12 - 4

    def test_the_next_turn_continues_in_the_block_where_the_last_one_ended(self):
        cache, text = BlockCache(TokenPool(8), rope_key), [*range(40)]
        first = self.opened(cache, text)
        compute(first, text)
        last = first.blocks[-1]
        cache.close(first)
        second = self.opened(cache, [*text, 50, 51])
        assert (second.length, second.blocks[-1]) == (40, last)
        assert held(second) == expected(second)

    def test_a_text_that_parts_inside_a_full_block_begins_with_a_copy_of_it(self):
        cache, text = BlockCache(TokenPool(8), rope_key), [*range(40)]
        first = self.opened(cache, text)
        compute(first, text)
        second = self.opened(cache, [*text[:20], 50, 51])
        assert second.length == 20
        assert second.blocks[0] == first.blocks[0] and second.blocks[1] != first.blocks[1]
        compute(second, [50, 51])
        assert held(first) == expected(first) and held(second) == expected(second)

    def test_the_last_token_of_a_prompt_is_always_computed(self):
        cache, text = BlockCache(TokenPool(8), rope_key), [*range(32)]
        first = self.opened(cache, text)
        compute(first, text)
        assert self.opened(cache, text).length == 31

    def test_two_texts_that_come_to_the_same_tokens_share_them_afterwards(self):
        cache, text = BlockCache(TokenPool(8), rope_key), [*range(32)]
        first, second = self.opened(cache, text), self.opened(cache, text)
        compute(first, text)
        compute(second, text)
        assert first.blocks == second.blocks
        assert free_blocks(cache) == 8 - 2

    def test_texts_of_another_rotary_base_share_nothing(self):
        cache, text = BlockCache(TokenPool(40), rope_key), [*range(32)]
        compute(self.opened(cache, text), text)
        other = cache.open(text, 40, 300)
        assert other is not None and other.length == 0

    def test_texts_of_another_adapter_share_nothing(self):
        cache, text = BlockCache(TokenPool(40), rope_key), [*range(40)]
        for adapter in (None, "one", "other"):
            sequence = cache.open(text, 40, 100, adapter=adapter)
            assert sequence is not None and (sequence.length, sequence.adapter) == (0, adapter)
            compute(sequence, text)
            cache.close(sequence)
        for adapter in (None, "one", "other"):
            sequence = cache.open(text, 40, 100, adapter=adapter)
            assert sequence is not None and (sequence.length, sequence.adapter) == (39, adapter)
            assert held(sequence) == expected(sequence)

    def test_a_span_is_shared_where_its_content_is_the_same(self):
        cache = BlockCache(TokenPool(40), rope_key)
        question = [7, *content_ids(b"cat", 30), 8, 9]
        compute(self.opened(cache, question), question)
        assert self.opened(cache, [*question[:-1], 5]).length == 32
        assert self.opened(cache, [7, *content_ids(b"dog", 30), 8, 9]).length == 1
        assert self.opened(cache, [7, *content_ids(b"cat", 31), 8, 9]).length == 1

    def test_the_least_recently_used_text_is_dropped_first_and_its_end_before_its_start(self):
        cache = BlockCache(TokenPool(4), rope_key)
        old, new = [*range(32)], [*range(50, 66)]
        for text in (old, new):
            sequence = self.opened(cache, text, len(text))
            compute(sequence, text)
            cache.close(sequence)
        sequence = self.opened(cache, [*range(70, 100)], 32)
        compute(sequence, [*range(70, 100)])
        cache.close(sequence)
        assert self.opened(cache, [*old, 1], 48).length == 16  # and before its sequence needs all of the pool
        assert idle_blocks(cache) + free_blocks(cache) == 3

    def test_a_text_waits_until_its_whole_plan_fits(self):
        cache = BlockCache(TokenPool(4), rope_key)
        first = self.opened(cache, [1, 2, 3], 33)
        assert cache.open([4, 5], 17, 100) is None
        second = self.opened(cache, [4, 5], 16)
        compute(first, [*range(33)])
        compute(second, [*range(50, 66)])
        with pytest.raises(GenerationError, match="outgrew its plan, and all 4 blocks"):
            compute(second, [1])
        cache.close(first)
        compute(second, [1])

    def test_a_plan_grows_while_there_is_room_and_stays_as_it_is_otherwise(self):
        cache = BlockCache(TokenPool(4), rope_key)
        first, second = self.opened(cache, [1], 16), self.opened(cache, [2], 32)
        assert cache.grow(first, 32)
        assert not cache.grow(first, 33) and not cache.grow(second, 48)
        compute(second, [*range(50, 82)])
        compute(first, [*range(32)])
        cache.close(second)
        assert cache.grow(first, 64) and not cache.grow(first, 65)

    def test_idle_blocks_that_a_text_begins_with_are_no_room_for_the_rest_of_it(self):
        cache, text = BlockCache(TokenPool(3), rope_key), [*range(32)]
        sequence = self.opened(cache, text, 32)
        compute(sequence, text)
        cache.close(sequence)
        other = self.opened(cache, [70], 16)
        assert cache.open([*text, 50], 48, 100) is None
        cache.close(other)
        assert self.opened(cache, [*text, 50], 48).length == 32

    def test_a_block_of_rejected_drafts_stays_promised_to_its_text(self):
        cache = BlockCache(TokenPool(2), rope_key)
        first = self.opened(cache, [1], 32)
        compute(first, [*range(20)])
        first.truncate(16)
        assert free_blocks(cache) == 1
        assert cache.open([70], 16, 100) is None
        compute(first, [*range(50, 66)])

    def test_a_cut_text_writes_nothing_into_what_others_hold(self):
        cache, text = BlockCache(TokenPool(8), rope_key), [*range(32)]
        first = self.opened(cache, text, 32)
        compute(first, text)
        second = self.opened(cache, [*text, 77], 48)
        assert second.blocks == first.blocks
        second.truncate(20)
        compute(second, [90, 91])
        assert held(first) == expected(first) and held(second) == expected(second)

    def test_dropping_what_is_idle_gives_its_memory_back(self):
        pool = TokenPool(8)
        cache = BlockCache(pool, rope_key)
        sequence, running = self.opened(cache, [1]), self.opened(cache, [2])
        compute(sequence, [*range(40)])
        compute(running, [2])
        cache.close(sequence)
        assert idle_blocks(cache) == 3
        cache.drop_idle()
        assert (idle_blocks(cache), free_blocks(cache)) == (0, 7)
        assert sorted(pool.released) == sorted({*range(8)} - {*running.blocks})
        assert held(running) == expected(running)

    def test_closing_twice_changes_nothing(self):
        cache = BlockCache(TokenPool(8), rope_key)
        sequence = self.opened(cache, [1])
        compute(sequence, [*range(20)])
        cache.close(sequence)
        cache.close(sequence)
        assert (idle_blocks(cache), free_blocks(cache)) == (2, 6)


def check_counts(cache: BlockCache, users: list[int]) -> None:
    """Every block has the right number of users; unused ones are free or idle, and cover the promises."""
    assert cache._users == users
    unused = {block for block, count in enumerate(users) if count == 0}
    assert {*cache._free} | {*cache._idle} == unused
    assert free_blocks(cache) + idle_blocks(cache) == len(unused)
    assert 0 <= cache._promised <= len(unused)


def check_tree(cache: BlockCache) -> None:
    """Every cached block has a cached parent, and is found there."""
    for block, key in cache._keys.items():
        assert key.parent == -1 or key.parent in cache._keys
        assert cache._children[key.root, key.parent][key.token_ids] == block
    assert sum(map(len, cache._children.values())) == len(cache._keys)
    assert cache._ordered == {parent: sorted(ids) for parent, ids in cache._children.items()}


def check_nothing_stays(cache: BlockCache) -> None:
    """Of texts that are all closed."""
    assert cache._users == [0] * cache.pool.blocks
    assert cache._promised == 0
    cache.drop_idle()
    assert free_blocks(cache) == cache.pool.blocks
    assert not cache._keys and not cache._children and not cache._ordered


class Machine(RuleBasedStateMachine):
    """Texts of a small alphabet are opened, grown, truncated and closed, in a pool that is too small for all."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = TokenPool(9)
        self.cache = BlockCache(self.pool, rope_key)
        self.open: list[tuple[BlockSequence, int]] = []  # with their plans
        self.was_cut: set[BlockSequence] = set()  # these have released blocks that their plans included
        self.texts: list[list[int]] = [[]]

    @rule(
        data=st.data(),
        tail=texts(40),
        rope_length=st.sampled_from([100, 300]),
        adapter=adapters,
    )
    def come(self, data: st.DataObject, tail: list[int], rope_length: int, adapter: str | None) -> None:
        known = data.draw(st.sampled_from(self.texts))
        prompt = [*known[: data.draw(st.integers(0, len(known)))], *tail]
        plan = len(prompt) + data.draw(st.integers(0, 40))
        if blocks_of(plan) > self.pool.blocks:
            return
        sequence = self.cache.open(prompt, plan, rope_length, adapter=adapter)
        if sequence is None:
            assert self.open, "a plan that fits the pool waits for nobody"
            return
        assert sequence.root == (rope_key(rope_length), adapter)
        assert sequence.token_ids == prompt[: sequence.length] and sequence.length < len(prompt)
        self.open.append((sequence, plan))
        self.texts.append(prompt)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), tokens=texts(40))
    def grow(self, data: st.DataObject, tokens: list[int]) -> None:
        """Within its plan a text never fails."""
        sequence, plan = data.draw(st.sampled_from(self.open))
        tokens = tokens[: plan - sequence.length]
        if tokens:
            try:
                compute(sequence, tokens)
            except GenerationError:
                assert sequence in self.was_cut
                return
            self.texts.append([*sequence.token_ids])

    @precondition(lambda self: self.open)
    @rule(data=st.data(), more=st.integers(1, 40))
    def plan_more(self, data: st.DataObject, more: int) -> None:
        """A granted plan has its blocks, even for a text that released some before."""
        index = data.draw(st.integers(0, len(self.open) - 1))
        sequence, plan = self.open[index]
        if self.cache.grow(sequence, plan + more):
            self.open[index] = (sequence, plan + more)
            self.was_cut.discard(sequence)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cut(self, data: st.DataObject) -> None:
        sequence, _ = data.draw(st.sampled_from(self.open))
        sequence.truncate(data.draw(st.integers(0, sequence.length)))
        self.was_cut.add(sequence)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), back=st.integers(1, 20))
    def draft_and_reject(self, data: st.DataObject, back: int) -> None:
        """Tokens are computed and truncated, as rejected drafts are."""
        sequence, plan = data.draw(st.sampled_from(self.open))
        length = sequence.length
        drafts = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=back))[: plan - length]
        if drafts and sequence not in self.was_cut:
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
    def every_text_finds_its_own_tokens(self) -> None:
        for sequence, _ in self.open:
            assert held(sequence) == expected(sequence)

    @invariant()
    def every_block_is_free_or_idle_or_counted(self) -> None:
        users = [0] * self.pool.blocks
        for sequence, _ in self.open:
            assert len({*sequence.blocks}) == len(sequence.blocks) >= blocks_of(sequence.length)
            for block in sequence.blocks:
                users[block] += 1
        check_counts(self.cache, users)

    @invariant()
    def a_cached_block_stands_behind_a_cached_one(self) -> None:
        check_tree(self.cache)

    def teardown(self) -> None:
        for sequence, _ in self.open:
            self.cache.close(sequence)
        check_nothing_stays(self.cache)


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRandomInterleavings = Machine.TestCase


class TestSequenceCache:
    def cache(self, tokens: int) -> SequenceCache:
        return SequenceCache(KVSequence, rope_key, tokens)

    def computed(self, cache: SequenceCache, text: Sequence[int], plan: int) -> KVSequence:
        sequence = cache.open(text, plan, 100)
        assert sequence is not None
        sequence.extend(text[sequence.length :])
        return sequence

    def test_the_next_turn_takes_the_sequence_of_the_last_one(self):
        cache, text = self.cache(100), [*range(30)]
        first = self.computed(cache, text, 40)
        cache.close(first)
        assert cache.open([*text, 50, 51], 40, 100) is first
        assert first.token_ids == text

    def test_a_text_of_its_own_leaves_others_theirs(self):
        cache, text = self.cache(100), [*range(30)]
        first = self.computed(cache, text, 30)
        cache.close(first)
        cache.close(self.computed(cache, [0, 1, *range(50, 70)], 30))
        assert cache.open([*text, 50], 40, 100) is first

    def test_another_rotary_base_is_no_match(self):
        cache = self.cache(1000)
        cache.close(self.computed(cache, [*range(30)], 30))
        other = cache.open([*range(40)], 300, 300)
        assert other is not None and other.length == 0

    def test_another_adapter_is_no_match(self):
        cache, text = self.cache(1000), [*range(30)]
        first = self.computed(cache, text, 30)
        cache.close(first)
        other = cache.open(text, 30, 100, adapter="one")
        assert other is not None and (other.length, other.adapter) == (0, "one")
        other.extend(text)
        cache.close(other)
        assert cache.open(text, 30, 100) is first
        assert cache.open(text, 30, 100, adapter="one") is other

    @settings(deadline=None)
    @given(st.data())
    def test_plans_and_idle_texts_stay_within_the_budget(self, data: st.DataObject):
        cache, running = self.cache(100), []
        for _ in range(data.draw(st.integers(1, 20))):
            text = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=60))
            plan = len(text) + data.draw(st.integers(0, 40))
            sequence = cache.open(text, plan, 100)
            if sequence is None:
                assert sum(plan for _, plan in running) + plan > 100
            else:
                sequence.extend(text[sequence.length :])
                running.append((sequence, plan))
            if running and data.draw(st.booleans()):
                cache.close(running.pop()[0])
            if running and data.draw(st.booleans()):
                sequence, plan = running[-1]
                larger = plan + data.draw(st.integers(0, 40))
                others = sum(plan for _, plan in running[:-1])
                assert cache.grow(sequence, larger) == (others + larger <= 100 or larger == plan)
                if others + larger <= 100:
                    running[-1] = (sequence, larger)
            idle = sum(sequence.length for sequence in cache._idle.values())
            assert sum(plan for _, plan in running) + idle <= 100

    def test_the_least_recently_used_texts_are_dropped_first(self):
        """Each is another text of 30 tokens; using one again makes it the newest."""
        cache, texts = self.cache(100), [[*range(start, start + 30)] for start in (0, 100, 200)]
        sequences = [self.computed(cache, text, 30) for text in texts]
        for sequence in sequences:
            cache.close(sequence)
        again = cache.open([*texts[0], 1], 40, 100)
        assert again is sequences[0]
        cache.close(again)
        cache.close(self.computed(cache, [*range(300, 330)], 30))
        for number, is_kept in [(2, True), (0, True), (1, False)]:
            assert (cache.open([*texts[number], 1], 31, 100) is sequences[number]) is is_kept

    def test_a_text_is_taken_over_where_half_of_it_or_of_the_new_one_is_the_same(self):
        old = [*range(40)]
        for new, is_taken in [
            ([*old[:20], *range(100, 200)], True),
            ([*old[:19], *range(100, 200)], False),
            ([*old[:10], *range(100, 110), 1], True),
            ([*old[:9], *range(100, 111), 1], False),
        ]:
            cache = self.cache(1000)
            first = self.computed(cache, old, 40)
            cache.close(first)
            assert (cache.open(new, 200, 100) is first) is is_taken, new

    def test_of_texts_that_begin_alike_the_one_with_most_in_common_is_taken(self):
        cache, text = self.cache(1000), [*range(40)]
        near, far = self.computed(cache, text, 40), self.computed(cache, [*text[:30], *range(90, 100)], 40)
        cache.close(near)
        cache.close(far)
        assert cache.open([*text, 1], 41, 100) is near

    def test_a_sequence_that_holds_nothing_is_not_kept(self):
        cache = self.cache(100)
        empty = cache.open([1, 2], 10, 100)
        assert empty is not None
        cache.close(empty)
        gone = weakref.ref(empty)
        del empty
        assert gone() is None
