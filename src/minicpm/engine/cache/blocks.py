"""Decides which texts' keys and values are kept, shared and evicted. It knows ids and block numbers, not the memory.

`BlockCache` is for a backend whose memory is a pool of 16-token blocks. A text is a table of block numbers, and texts
share the blocks of a common prefix, while they run and later. `SequenceCache` is for backends whose sequences have
their own memory: an idle sequence is reused as a whole by the next text with the same prefix.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from minicpm.engine.backend import BLOCK_TOKENS, Backend, CacheUsage, KVSequence, StepBackend
from minicpm.errors import GenerationError, ModelError

# A request is refused if memory allows only a shorter answer than this.
SHORTEST_ANSWER_TOKENS = 64
# Keys and values take at most this part of the free memory; the rest is for activations and other programs.
MOST_OF_FREE_MEMORY = 0.8

ROOT = -1  # the parent of a text's first block


def blocks_of(tokens: int) -> int:
    """The number of blocks for so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


def budget_tokens(backend: StepBackend, text_tokens: int, max_batch: int, kv_cache_bytes: int | None) -> int:
    """The budget of the cache in tokens, in whole blocks.

    Without `kv_cache_bytes` it is `max_batch` texts of `text_tokens` held tokens and one more, so that a batch does not
    evict all earlier texts. It is smaller if less memory is free.
    """
    block_bytes = BLOCK_TOKENS * backend.cache_bytes_per_token
    if kv_cache_bytes is not None:
        if kv_cache_bytes < block_bytes:
            raise ValueError(
                f"kv_cache_bytes is {kv_cache_bytes}, but {BLOCK_TOKENS} tokens of this model take {block_bytes}; "
                "give at least that, or leave it out"
            )
        return kv_cache_bytes // block_bytes * BLOCK_TOKENS
    wanted = (max_batch + 1) * blocks_of(text_tokens) * BLOCK_TOKENS
    free = backend.free_cache_bytes()
    if free is None:
        return wanted
    room = int(free * MOST_OF_FREE_MEMORY) // block_bytes * BLOCK_TOKENS
    if room < SHORTEST_ANSWER_TOKENS:
        raise ModelError(
            f"{free / 1e6:,.1f} MB of memory are free beside the model's weights, enough for the keys and values of "
            f"{room} tokens; at least {SHORTEST_ANSWER_TOKENS} are needed. Stop other programs, or use a smaller model"
        )
    return min(wanted, room)


def beyond_budget(backend: Backend, cache_tokens: int, name: str, tokens: int) -> GenerationError:
    """The error for a text, called `name`, of `tokens` tokens that can never fit into the cache."""
    megabytes = backend.cache_bytes_per_token / 1e6
    tokens = backend.held_tokens(tokens)
    return GenerationError(
        f"{name} may take {tokens} tokens, which need {tokens * megabytes:,.1f} MB for keys and values; the cache "
        f"holds {cache_tokens} tokens in {cache_tokens * megabytes:,.1f} MB. Lower max_tokens, shorten the prompt, or "
        "load the model with more kv_cache_bytes"
    )


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common prefix of two sequences."""
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))


class BlockPool(Protocol):
    """The memory of a BlockCache; csrc/kv_pool.h."""

    @property
    def blocks(self) -> int: ...

    def copy(self, source: int, destination: int) -> None:
        """Copy one block into another."""

    def release(self, blocks: Sequence[int]) -> None:
        """Return the memory of blocks to the system; their content is lost."""


class Root(NamedTuple):
    """The properties that all blocks of a text share. Texts with different roots share no blocks."""

    rope_base: float  # of the keys' rotation
    adapter: str | None  # that computed keys and values; None: the model's own weights


@dataclass(frozen=True)
class _Key:
    """The content of a cached block: its tokens, its parent block and its root.

    `token_ids` has content ids (engine/prompt.py) for embeddings. The parent stays cached as long as this block, so its
    number identifies the whole text before it. Only the last block of a text may hold fewer than 16 tokens.
    """

    root: Root
    parent: int
    token_ids: tuple[int, ...]


class BlockSequence(KVSequence):
    """One text of a BlockCache: its tokens and the table of its blocks.

    Full blocks are cached, may be shared and are never written again. Only this sequence uses the block that it writes
    to.
    """

    def __init__(self, cache: BlockCache, rope_length: int, root: Root):
        super().__init__(rope_length, root.adapter)
        self.pool = cache.pool
        self.root = root
        self.blocks: list[int] = []
        self.promised_blocks = 0  # reserved for its plan, but not taken yet
        self.is_last_cached = False  # the last block is cached and truncated: it must not be written
        self._cache = cache
        self._table = np.zeros(0, np.int32)

    @property
    def table(self) -> npt.NDArray[np.int32]:
        """Numbers of the blocks, in the order of the text."""
        if len(self._table) != len(self.blocks):
            self._table = np.array(self.blocks, np.int32)
        return self._table

    def holds(self, index: int) -> bool:
        """Whether this sequence uses block `index` of its table."""
        return True

    def reserve(self, length: int) -> None:
        """Take blocks for new tokens up to `length`. Raises GenerationError if there are none."""
        if self.is_last_cached or length > BLOCK_TOKENS * len(self.blocks):
            self._cache.reserve(self, length)
            self.forget_table()

    def extend(self, token_ids: Sequence[int]) -> None:
        full = len(self.token_ids) // BLOCK_TOKENS
        self.token_ids += token_ids
        if full < len(self.token_ids) // BLOCK_TOKENS:
            self._cache.keep_full_blocks(self, full)

    def truncate(self, length: int) -> None:
        super().truncate(length)
        self._cache.cut(self)
        self.forget_table()

    def forget_table(self) -> None:
        self._table = np.zeros(0, np.int32)


class BlockCache:
    """The blocks of a pool: free ones, those of open sequences (with user counts), and idle ones in LRU order.

    A block is cached by its content (_Key) when it is full, or when its text ends. Every user of a block also uses its
    parent, and releases its blocks last to first. So a parent is never evicted before its children. Thread-safe.

    The cache never promises more blocks than are free or idle, so an open sequence always gets its planned blocks.
    """

    def __init__(self, pool: BlockPool, rope_key: Callable[[int], float]):
        self.pool = pool
        self.tokens = pool.blocks * BLOCK_TOKENS
        self._rope_key = rope_key
        self._lock = threading.RLock()
        self._free: list[int] = [*range(pool.blocks - 1, -1, -1)]
        self._users = [0] * pool.blocks
        self._keys: dict[int, _Key] = {}
        self._children: dict[tuple[Root, int], dict[tuple[int, ...], int]] = {}
        # The children's ids in sorted order: the child with the longest common prefix is beside a text's own place.
        self._ordered: dict[tuple[Root, int], list[tuple[int, ...]]] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._promised = 0

    @property
    def _available(self) -> int:
        return len(self._free) + len(self._idle)

    # --- for the engine ------------------------------------------------------------------------------------------

    def open(
        self,
        prompt_ids: Sequence[int],
        planned_tokens: int,
        rope_length: int,
        *,
        keeps_all: bool = False,
        adapter: str | None = None,
    ) -> BlockSequence | None:
        with self._lock:
            root = Root(self._rope_key(rope_length), adapter)
            chain = self._cached_chain(root, prompt_ids[:-1])
            sequence = self._sequence(chain, rope_length, root, keeps_all)
            held = [(index, block) for index, block in enumerate(sequence.blocks) if sequence.holds(index)]
            wanted = self._missing_blocks(sequence, planned_tokens)
            counted = wanted + sum(self._is_counted(index, block) for index, block in held)
            revived = sum(self._users[block] == 0 for _, block in held)
            if self._available - revived < self._promised + counted:
                return None
            sequence.promised_blocks = wanted
            self._promised += counted
            for _, block in held:
                self._use(block)
            cached = BLOCK_TOKENS * len(sequence.blocks)
            sequence.token_ids += prompt_ids[:cached]
            self._take_partial(sequence, prompt_ids[cached:-1])
            return sequence

    def grow(self, sequence: KVSequence, planned_tokens: int) -> bool:
        assert isinstance(sequence, BlockSequence)
        with self._lock:
            # A last block that must not be written may need a copy.
            wanted = self._missing_blocks(sequence, planned_tokens)
            wanted += sequence.is_last_cached - sequence.promised_blocks
            if wanted > 0:
                if self._available < self._promised + wanted:
                    return False
                sequence.promised_blocks += wanted
                self._promised += wanted
            return True

    def close(self, sequence: KVSequence) -> None:
        assert isinstance(sequence, BlockSequence)
        with self._lock:
            self._promised -= sequence.promised_blocks
            sequence.promised_blocks = 0
            if sequence.length % BLOCK_TOKENS:
                self._keep_partial(sequence)
            sequence.token_ids.clear()
            for index in range(len(sequence.blocks) - 1, -1, -1):
                block = sequence.blocks.pop()
                if sequence.holds(index):
                    self._leave(block)
                    self._promised -= self._is_counted(index, block)
            sequence.is_last_cached = False
            sequence.forget_table()

    def drop_idle(self) -> None:
        with self._lock:
            while self._idle:
                self._drop_oldest()
            self.pool.release(self._free)

    def usage(self) -> CacheUsage:
        with self._lock:
            return CacheUsage(
                self.tokens,
                held_tokens=self.tokens - BLOCK_TOKENS * self._available,
                idle_tokens=BLOCK_TOKENS * len(self._idle),
            )

    # --- for sequences -------------------------------------------------------------------------------------------

    def reserve(self, sequence: BlockSequence, length: int) -> None:
        with self._lock:
            if sequence.is_last_cached:
                self._make_last_writable(sequence)
            while len(sequence.blocks) < blocks_of(length):
                sequence.blocks.append(self._take(sequence))

    def keep_full_blocks(self, sequence: BlockSequence, first: int) -> None:
        """Cache the full blocks from the `first` on. A block that is cached already is shared instead.

        Both hold the same bits: by docs/numerics.md these do not depend on the rest of a step.
        """
        with self._lock:
            for index in range(first, sequence.length // BLOCK_TOKENS):
                block, key = sequence.blocks[index], self._key(sequence, index)
                known = self._known(key)
                if known is None:
                    self._keep(block, key)
                elif known != block:
                    self._share(sequence, index, known)

    def cut(self, sequence: BlockSequence) -> None:
        """Release the blocks after the sequence's length."""
        with self._lock:
            for index in range(len(sequence.blocks) - 1, blocks_of(sequence.length) - 1, -1):
                self._give_back(sequence, index, sequence.blocks.pop())
            is_partial = sequence.length % BLOCK_TOKENS != 0
            sequence.is_last_cached = is_partial and sequence.blocks[-1] in self._keys

    def _sequence(self, chain: list[int], rope_length: int, root: Root, keeps_all: bool) -> BlockSequence:
        """A new sequence whose table is as much of a cached chain as it can reuse. It uses none of its blocks yet."""
        sequence = BlockSequence(self, rope_length, root)
        sequence.blocks += chain
        return sequence

    # --- lookup --------------------------------------------------------------------------------------------------

    def _cached_chain(self, root: Root, token_ids: Sequence[int]) -> list[int]:
        """The longest chain of cached full blocks that a text begins with."""
        chain: list[int] = []
        for start in range(0, len(token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            ids = tuple(token_ids[start : start + BLOCK_TOKENS])
            block = self._known(_Key(root, chain[-1] if chain else ROOT, ids))
            if block is None:
                break
            chain.append(block)
        return chain

    def _known(self, key: _Key) -> int | None:
        return self._children.get((key.root, key.parent), {}).get(key.token_ids)

    def _key(self, sequence: BlockSequence, index: int) -> _Key:
        parent = sequence.blocks[index - 1] if index else ROOT
        ids = sequence.token_ids[BLOCK_TOKENS * index : BLOCK_TOKENS * (index + 1)]
        return _Key(sequence.root, parent, tuple(ids))

    def _take_partial(self, sequence: BlockSequence, token_ids: Sequence[int]) -> None:
        """Start a sequence's own first block with the cached block that shares the longest prefix with the text.

        The partial last block of an earlier text is taken over; a full block is copied.
        """
        parent = sequence.blocks[-1] if sequence.blocks else ROOT
        best_ids, best_length = self._most_similar((sequence.root, parent), tuple(token_ids[:BLOCK_TOKENS]))
        if not best_length:
            return
        best = self._children[sequence.root, parent][best_ids]
        self._use(best)
        if len(self._keys[best].token_ids) < BLOCK_TOKENS:
            self._forget(best)
            sequence.blocks.append(best)
            self._keep_promise(sequence)
        elif self._available:
            block = self._take(sequence)
            self.pool.copy(best, block)
            sequence.blocks.append(block)
            self._leave(best)
        else:  # this is the last idle block, and its copy would evict it
            self._leave(best)
            return
        sequence.token_ids += token_ids[:best_length]

    def _most_similar(self, parent: tuple[Root, int], ids: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """Ids of the child with the longest common prefix with `ids`, and the length of that prefix."""
        ordered = self._ordered.get(parent, [])
        place = bisect_left(ordered, ids)
        beside = ordered[max(0, place - 1) : place + 1]
        lengths = [common_prefix_length(known, ids) for known in beside]
        longest = max(lengths, default=0)
        return (beside[lengths.index(longest)], longest) if longest else ((), 0)

    # --- caching and eviction ------------------------------------------------------------------------------------

    def _share(self, sequence: BlockSequence, index: int, known: int) -> None:
        """Replace a sequence's own block with a cached block of the same content."""
        own = sequence.blocks[index]
        self._use(known)
        sequence.blocks[index] = known
        self._give_back(sequence, index, own)
        sequence.forget_table()

    def _keep(self, block: int, key: _Key) -> None:
        children = self._children.setdefault((key.root, key.parent), {})
        for length in range(1, len(key.token_ids)):
            # A partial block of an earlier text is redundant if this block begins with its tokens.
            beginning = children.get(key.token_ids[:length])
            if beginning is not None:
                self._drop(beginning)
        # Dropping the last child removed the dictionary.
        self._children.setdefault((key.root, key.parent), {})[key.token_ids] = block
        insort(self._ordered.setdefault((key.root, key.parent), []), key.token_ids)
        self._keys[block] = key

    def _keep_partial(self, sequence: BlockSequence) -> None:
        """Cache a text's partial last block, unless a cached block begins with the same tokens."""
        index = sequence.length // BLOCK_TOKENS
        block, key = sequence.blocks[index], self._key(sequence, index)
        _, length = self._most_similar((key.root, key.parent), key.token_ids)
        if block not in self._keys and length < len(key.token_ids):
            self._keep(block, key)

    def _forget(self, block: int) -> None:
        """Remove a block from the cache for its only user. Its descendants are idle, so they are evicted."""
        key = self._keys.pop(block)
        siblings, ordered = self._children[key.root, key.parent], self._ordered[key.root, key.parent]
        del siblings[key.token_ids]
        del ordered[bisect_left(ordered, key.token_ids)]
        if not siblings:
            del self._children[key.root, key.parent], self._ordered[key.root, key.parent]
        for child in [*self._children.get((key.root, block), {}).values()]:
            self._drop(child)

    def _drop(self, block: int) -> None:
        """Evict an idle block and its descendants."""
        del self._idle[block]
        self._forget(block)
        self._free.append(block)

    def _drop_oldest(self) -> None:
        block = next(iter(self._idle))
        assert (self._keys[block].root, block) not in self._children
        self._drop(block)

    def _make_last_writable(self, sequence: BlockSequence) -> None:
        last = sequence.blocks[-1]
        if self._users[last] == 1:
            self._forget(last)
        else:
            block = self._take(sequence)
            self.pool.copy(last, block)
            sequence.blocks[-1] = block
            self._leave(last)
        sequence.is_last_cached = False

    # --- counting ------------------------------------------------------------------------------------------------

    def _missing_blocks(self, sequence: BlockSequence, planned_tokens: int) -> int:
        """The blocks that an open sequence still needs for `planned_tokens`."""
        return blocks_of(planned_tokens) - len(sequence.blocks)

    def _is_counted(self, index: int, block: int) -> bool:
        """Whether the promises include an extra block, because others also use block `index` of a text."""
        return False

    def _take(self, sequence: BlockSequence) -> int:
        """A block for one user; evicts an idle block if none is free."""
        if not sequence.promised_blocks and self._available <= self._promised:
            raise GenerationError(
                f"a sequence of {sequence.length} tokens outgrew its plan, and all {self.pool.blocks} blocks of "
                f"{BLOCK_TOKENS} tokens are taken or promised to others; plan for more tokens"
            )
        if not self._free:
            self._drop_oldest()
        block = self._free.pop()
        self._users[block] = 1
        self._keep_promise(sequence)
        return block

    def _keep_promise(self, sequence: BlockSequence) -> None:
        if sequence.promised_blocks:
            sequence.promised_blocks -= 1
            self._promised -= 1

    def _use(self, block: int) -> None:
        self._idle.pop(block, None)
        self._users[block] += 1

    def _leave(self, block: int) -> None:
        self._users[block] -= 1
        if self._users[block] == 0:
            if block in self._keys:
                self._idle[block] = None
            else:
                self._free.append(block)

    def _give_back(self, sequence: BlockSequence, index: int, block: int) -> None:
        """Release block `index` of an open sequence. If that frees a block, it is promised to the sequence again."""
        self._leave(block)
        if self._users[block] == 0:
            sequence.promised_blocks += 1
            self._promised += 1


class SequenceCache:
    """Whole sequences, each used by one text at a time; idle ones are evicted in LRU order."""

    def __init__(self, new_sequence: Callable[[int], KVSequence], rope_key: Callable[[int], float], tokens: int):
        self.tokens = tokens
        self._new_sequence = new_sequence
        self._rope_key = rope_key
        self._planned: dict[int, int] = {}  # of open sequences, by id()
        self._idle: OrderedDict[int, KVSequence] = OrderedDict()

    def open(
        self,
        prompt_ids: Sequence[int],
        planned_tokens: int,
        rope_length: int,
        *,
        keeps_all: bool = False,
        adapter: str | None = None,
    ) -> KVSequence | None:
        running = sum(self._planned.values()) + planned_tokens
        if running > self.tokens:
            return None
        sequence = self._take_similar(prompt_ids[:-1], rope_length, adapter)
        if sequence is None:
            sequence = self._new_sequence(rope_length)
            sequence.adapter = adapter
        self._planned[id(sequence)] = planned_tokens
        self._drop_beyond_budget()
        return sequence

    def grow(self, sequence: KVSequence, planned_tokens: int) -> bool:
        more = planned_tokens - self._planned[id(sequence)]
        if more > 0:
            if sum(self._planned.values()) + more > self.tokens:
                return False
            self._planned[id(sequence)] = planned_tokens
            self._drop_beyond_budget()
        return True

    def close(self, sequence: KVSequence) -> None:
        if self._planned.pop(id(sequence), None) is not None and sequence.length:
            self._idle[id(sequence)] = sequence

    def usage(self) -> CacheUsage:
        idle = sum(sequence.length for sequence in self._idle.values())
        return CacheUsage(self.tokens, held_tokens=sum(self._planned.values()), idle_tokens=idle)

    def drop_idle(self) -> None:
        self._idle.clear()

    def _drop_beyond_budget(self) -> None:
        running = sum(self._planned.values())
        while self._idle and running + sum(idle.length for idle in self._idle.values()) > self.tokens:
            self._idle.popitem(last=False)

    def _take_similar(self, token_ids: Sequence[int], rope_length: int, adapter: str | None) -> KVSequence | None:
        """The idle sequence with the longest common prefix, truncated to it; None if too little is in common.

        The prefix must be at least half of the sequence or half of the new text.
        """
        root = Root(self._rope_key(rope_length), adapter)
        best, best_length = None, 0
        for sequence in self._idle.values():
            length = common_prefix_length(sequence.token_ids, token_ids)
            if length > best_length and Root(self._rope_key(sequence.rope_length), sequence.adapter) == root:
                best, best_length = sequence, length
        if best is None or 2 * best_length < min(best.length, len(token_ids)):
            return None
        del self._idle[id(best)]
        best.truncate(best_length)
        return best
