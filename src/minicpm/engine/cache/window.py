"""A BlockCache for sliding windows: texts release the blocks between the attention sinks and the window.

A released block stays cached, like one of a finished text. If it is evicted while its children are still cached, a
ghost replaces it: a block number without memory, through which later texts still find the children. A text can reuse
a chain of cached blocks if none of its sinks and its window is a ghost.

A shared window block is charged to every sequence. The first to slide past it allocates a new block, and the shared
block does not become available.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

from minicpm.engine.backend import BLOCK_TOKENS, KVSequence
from minicpm.engine.cache.blocks import ROOT, BlockCache, BlockPool, BlockSequence, Root, blocks_of
from minicpm.engine.cache.sliding_window import SlidingWindow
from minicpm.errors import GenerationError


class WindowSequence(BlockSequence):
    """One text of a WindowCache. Its blocks from the sinks' end to `gone_to` are released.

    The table has the first block in their places, which is never written.
    """

    def __init__(self, cache: WindowCache, rope_length: int, root: Root, *, keeps_all: bool):
        super().__init__(cache, rope_length, root)
        self.keeps_all = keeps_all
        self.gone_to = cache.window.sink_blocks
        self._window_cache = cache

    def holds(self, index: int) -> bool:
        return not self._window_cache.window.sink_blocks <= index < self.gone_to

    def extend(self, token_ids: Sequence[int]) -> None:
        super().extend(token_ids)
        self._window_cache.leave_behind(self)

    def truncate(self, length: int) -> None:
        if self._window_cache.window.first_block(length) < self.gone_to:
            raise GenerationError(
                f"a text of {self.length} tokens under a sliding window cannot be truncated to {length}: its window "
                f"there is released; at most {self._window_cache.window.slack_tokens} tokens can be removed"
            )
        super().truncate(length)


class WindowCache(BlockCache):
    """The blocks of a pool for texts under a sliding window."""

    def __init__(self, pool: BlockPool, rope_key: Callable[[int], float], window: SlidingWindow):
        super().__init__(pool, rope_key)
        self.window = window
        self._ghosts = count(pool.blocks)

    def close(self, sequence: KVSequence) -> None:
        assert isinstance(sequence, WindowSequence)
        with self._lock:
            super().close(sequence)
            sequence.gone_to = self.window.sink_blocks

    def leave_behind(self, sequence: WindowSequence) -> None:
        """Release the blocks that no future token attends to, not even after truncation by `slack_tokens`."""
        if sequence.keeps_all:
            return
        with self._lock:
            first = self.window.first_block(max(0, sequence.length - self.window.slack_tokens))
            for index in range(sequence.gone_to, first):
                self._give_back(sequence, index, sequence.blocks[index])
                sequence.blocks[index] = sequence.blocks[0]
            if first > sequence.gone_to:
                sequence.gone_to = first
                sequence.forget_table()

    def _sequence(self, chain: list[int], rope_length: int, root: Root, keeps_all: bool) -> WindowSequence:
        sequence = WindowSequence(self, rope_length, root, keeps_all=keeps_all)
        chain = chain[: self._usable(chain, keeps_all)]
        sinks = self.window.sink_blocks
        if not keeps_all:
            sequence.gone_to = self.window.first_block(BLOCK_TOKENS * len(chain))
        sequence.blocks += chain[:sinks] + chain[:1] * (sequence.gone_to - sinks) + chain[sequence.gone_to :]
        return sequence

    # --- counting ------------------------------------------------------------------------------------------------

    def _most_blocks(self, planned_tokens: int, keeps_all: bool) -> int:
        total = blocks_of(planned_tokens)
        return total if keeps_all else min(total, self.window.held_blocks)

    def _missing_blocks(self, sequence: BlockSequence, planned_tokens: int) -> int:
        assert isinstance(sequence, WindowSequence)
        held = len(sequence.blocks) - (sequence.gone_to - self.window.sink_blocks)
        return self._most_blocks(planned_tokens, sequence.keeps_all) - held

    def _is_counted(self, index: int, block: int) -> bool:
        return index >= self.window.sink_blocks and self._users[block] > 0

    def _give_back(self, sequence: BlockSequence, index: int, block: int) -> None:
        super()._give_back(sequence, index, block)
        if self._is_counted(index, block):
            sequence.promised_blocks += 1  # the extra block that was counted for sharing

    def _share(self, sequence: BlockSequence, index: int, known: int) -> None:
        if known >= self.pool.blocks:
            self._rename(known, sequence.blocks[index])
            return
        is_counted = self._is_counted(index, known)
        super()._share(sequence, index, known)
        # The sequence has as many blocks as before. The block promised for its own one now covers the sharing, or none.
        sequence.promised_blocks -= 1
        self._promised -= not is_counted

    # --- ghosts --------------------------------------------------------------------------------------------------

    def _usable(self, chain: list[int], keeps_all: bool) -> int:
        """The number of blocks of a cached chain that a text can reuse: no ghost may be among its sinks and window."""
        length = len(chain)
        while length:
            first = self.window.sink_blocks if keeps_all else self.window.first_block(BLOCK_TOKENS * length)
            needed = [*range(min(length, self.window.sink_blocks)), *range(first, length)]
            ghost = next((index for index in reversed(needed) if chain[index] >= self.pool.blocks), None)
            if ghost is None:
                break
            length = ghost
        return length

    def _take_partial(self, sequence: BlockSequence, token_ids: Sequence[int]) -> None:
        parent = sequence.blocks[-1] if sequence.blocks else ROOT
        best_ids, best_length = self._most_similar((sequence.root, parent), tuple(token_ids[:BLOCK_TOKENS]))
        if best_length and self._children[sequence.root, parent][best_ids] < self.pool.blocks:
            super()._take_partial(sequence, token_ids)

    def _make_last_writable(self, sequence: BlockSequence) -> None:
        last, index = sequence.blocks[-1], len(sequence.blocks) - 1
        if self._users[last] == 1 and (sequence.root, last) not in self._children:
            super()._make_last_writable(sequence)
            return
        # Sequences that released this block may be writing its children.
        block = self._take(sequence)
        self.pool.copy(last, block)
        sequence.blocks[-1] = block
        self._give_back(sequence, index, last)
        sequence.is_last_cached = False

    def _drop_oldest(self) -> None:
        block = next(iter(self._idle))
        if (self._keys[block].root, block) in self._children:
            del self._idle[block]
            self._rename(block, next(self._ghosts))
            self._free.append(block)
        else:
            self._drop(block)

    def _rename(self, old: int, new: int) -> None:
        """Change a cached block's number: to a ghost's, or from a ghost's to one with memory."""
        key = self._keys[new] = self._keys.pop(old)
        self._children[key.root, key.parent][key.token_ids] = new
        if (key.root, old) in self._children:
            children = self._children[key.root, new] = self._children.pop((key.root, old))
            self._ordered[key.root, new] = self._ordered.pop((key.root, old))
            for child in children.values():
                self._keys[child] = replace(self._keys[child], parent=new)

    def _forget(self, block: int) -> None:
        parent, root = self._keys[block].parent, self._keys[block].root
        super()._forget(block)
        # Remove ghosts without children, up the chain.
        while parent >= self.pool.blocks and (root, parent) not in self._children:
            ghost, parent = parent, self._keys[parent].parent
            super()._forget(ghost)
