"""Do turns under a sliding window need ghost blocks? Counts the tokens that a turn computes again, with and without.

    python benchmarks/window_turns.py

Conversations of MiniCPM-nano take turns, round after round, ten turns each, so that every turn finds its own
conversation evicted in part by the others. The cache has the size that `LLM` gives it by default for four requests at
once. Three policies for evicting a block whose successors are still cached (engine/cache/window.py) are compared:

- ghosts: the memory is freed, and a number without memory keeps the path to the successors. The product does this.
- with successors: the block is evicted together with all its successors.
- ends first: the least recently used block without successors is evicted first; others only if there is none.

The model is not run: what is cached depends on token ids alone, and answers are random words. Everything is counted in
tokens, so the figures are the same on every machine. Writes benchmarks/results/window_turns.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
from collections.abc import Sequence
from pathlib import Path

from costs import require_idle_machine, write_results
from report import write_report
from versus_peers import talk

from minicpm.chat import ChatTemplate, Message
from minicpm.engine.backend import BLOCK_TOKENS
from minicpm.engine.backends import native
from minicpm.engine.cache.blocks import BlockSequence, budget_tokens
from minicpm.engine.cache.sliding_window import SlidingWindow
from minicpm.engine.cache.window import WindowCache
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.hub import embedded
from minicpm.tokenizer import Tokenizer

HELD_OUT = Path(__file__).parents[1] / "nano" / "held-out.jsonl"
WINDOWS, CONVERSATIONS, TURNS = (256, 1024), (1, 2, 4, 6, 8, 16), 10
QUESTION_WORDS, ANSWER_WORDS, STEP_TOKENS, CONTEXT, MAX_BATCH = 250, 25, 512, 16384, 4


class WithoutGhosts(WindowCache):
    """An evicted block takes its cached successors with it."""

    def _drop_oldest(self) -> None:
        self._drop(self._victim())

    def _victim(self) -> int:
        return next(iter(self._idle))

    def _drop(self, block: int) -> None:
        if block in self._idle:
            super()._drop(block)
        else:
            self._forget(block)  # an open text still uses it, as its own from now on

    def keep_full_blocks(self, sequence: BlockSequence, first: int) -> None:
        for index in range(first, sequence.length // BLOCK_TOKENS):
            if index == 0 or sequence.blocks[index - 1] in self._keys:
                super().keep_full_blocks(sequence, index)
                return

    def _keep_partial(self, sequence: BlockSequence) -> None:
        index = sequence.length // BLOCK_TOKENS
        if index == 0 or sequence.blocks[index - 1] in self._keys:
            super()._keep_partial(sequence)

    def _make_last_writable(self, sequence: BlockSequence) -> None:
        if sequence.blocks[-1] in self._keys:
            super()._make_last_writable(sequence)
        sequence.is_last_cached = False


class EndsFirst(WithoutGhosts):
    def _victim(self) -> int:
        ends = (block for block in self._idle if (self._keys[block].rope_base, block) not in self._children)
        return next(ends, super()._victim())


POLICIES: dict[str, type[WindowCache]] = {
    "ghosts": WindowCache,
    "with successors": WithoutGhosts,
    "ends first": EndsFirst,
}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    require_idle_machine()
    rows = []
    for window in WINDOWS:
        for conversations in CONVERSATIONS:
            counts = {name: new_tokens(policy, window, conversations) for name, policy in POLICIES.items()}
            rows.append(row(window, conversations, counts))
            talk(str(rows[-1]))
    note = (
        f"MiniCPM-nano's tokens; {TURNS} turns, questions of {QUESTION_WORDS} words and answers of {ANSWER_WORDS}. "
        f"Prompt tokens computed a turn, mean of turns 2 to {TURNS} of all conversations. The cache is LLM's "
        f"default for {MAX_BATCH} requests at once."
    )
    print("wrote", write_results("window_turns", rows, note))
    write_report()


def row(window: int, conversations: int, counts: dict[str, list[tuple[int, int]]]) -> dict[str, object]:
    (prompts, _), *_ = (zip(*pairs) for pairs in counts.values())
    return {
        "window": window,
        "conversations": conversations,
        "prompt tokens": round(sum(prompts) / len(prompts)),
        **{f"computed, {name}": round(sum(new for _, new in pairs) / len(pairs)) for name, pairs in counts.items()},
    }


def new_tokens(policy: type[WindowCache], window: int, conversations: int) -> list[tuple[int, int]]:
    """Of every turn but the first: the prompt's tokens, and how many of them would be computed."""
    tokenizer, template, cache = opened(policy, window)
    histories: list[list[Message]] = [[] for _ in range(conversations)]
    counts = []
    for turn in range(TURNS):
        for number, history in enumerate(histories):
            chance = random.Random(1000 * number + turn)
            history.append({"role": "user", "content": " ".join(chance.choices(words(), k=QUESTION_WORDS))})
            prompt = tokenizer.encode(template.render(history))
            answer = " ".join(chance.choices(words(), k=ANSWER_WORDS))
            new = run(cache, prompt, tokenizer.encode(answer, add_bos=False))
            history.append({"role": "assistant", "content": answer})
            if turn:
                counts.append((len(prompt), new))
    return counts


def opened(policy: type[WindowCache], window: int) -> tuple[Tokenizer, ChatTemplate, WindowCache]:
    """MiniCPM-nano's tokenizer and template, and a cache by this policy over its pool."""
    products = native.WindowCache
    native.WindowCache = policy  # type: ignore[misc]
    try:
        with open_checkpoint(embedded.folder(), allow_quantized=True) as checkpoint:
            backend = native.NativeBackend(checkpoint, window=SlidingWindow(window))
            cache = backend.new_cache(budget_tokens(backend, backend.held_tokens(CONTEXT), MAX_BATCH, None))
            assert isinstance(cache, policy)
            return checkpoint.tokenizer(), checkpoint.chat_template(), cache
    finally:
        native.WindowCache = products  # type: ignore[misc]


def run(cache: WindowCache, prompt: list[int], answer: list[int]) -> int:
    """The effect of a request on the cache, without the model; returns the tokens of the prompt to compute."""
    length = len(prompt) + len(answer)
    sequence = cache.open(prompt, length, length)
    assert sequence is not None
    cached = sequence.length
    steps = [prompt[start : start + STEP_TOKENS] for start in range(cached, len(prompt), STEP_TOKENS)]
    for ids in [*steps, *([token_id] for token_id in answer)]:
        sequence.reserve(sequence.length + len(ids))
        sequence.extend(ids)
    cache.close(sequence)
    return len(prompt) - cached


@functools.cache
def words() -> Sequence[str]:
    records = [json.loads(line) for line in HELD_OUT.read_text(encoding="utf-8").splitlines()]
    return " ".join(record["text"] for record in records if "text" in record).split()


if __name__ == "__main__":
    main()
