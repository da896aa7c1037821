"""Measurements and their figures, on a backend with a simulated clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isas import every_isa
from minicpm import native
from minicpm.bench import measure as bench
from minicpm.bench.measure import Peaks, Plan, Work, measure, prompt_operations, step_weight_bytes
from minicpm.engine.cache.sliding_window import SlidingWindow
from minicpm.export.quantize import quantize_folder
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.config import DecoderConfig, read_config_json
from small_models import WIDE, random_weights, write_model


class Clock:
    """A clock that advances only with the work that is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Sequence:
    rope_length = 0

    def __init__(self) -> None:
        self.length = 0

    def truncate(self, length: int) -> None:
        self.length = length


class CountingBackend:
    """A step takes 10 ms, and 1 ms for every token more than one."""

    name = "counting"
    vocab_size, context_length, trained_length, cache_bytes_per_token = 100, 4096, 4096, 1000

    def __init__(self, clock: Clock, free_bytes: int | None = None):
        self.clock, self.free_bytes = clock, free_bytes
        self.steps: list[list[tuple[int, int, str]]] = []  # per row: depth, tokens, logits

    def new_sequence(self, rope_length: int) -> Sequence:
        return Sequence()

    def free_cache_bytes(self) -> int | None:
        return self.free_bytes

    def rope_key(self, length: int) -> float:
        return 1.0

    def forward(self, rows) -> list[np.ndarray]:
        assert all(0 <= token < self.vocab_size for row in rows for token in row.token_ids)
        self.steps.append([(row.sequence.length, len(row.token_ids), row.logits) for row in rows])
        for row in rows:
            row.sequence.length += len(row.token_ids)
        self.clock.now += 0.010 + 0.001 * (sum(len(row.token_ids) for row in rows) - 1)
        return [np.zeros((1, self.vocab_size), np.float32) for _ in rows]


class KnownPeaks:
    """The second look at a peak finds three times the first."""

    def __init__(self) -> None:
        self.looks = 0

    def read_bandwidth(self) -> float:
        self.looks += 1
        return 1e9 if self.looks % 2 else 3e9

    integer_rate = read_bandwidth


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(bench, "time", clock)
    return clock


@pytest.fixture
def backend(clock: Clock) -> CountingBackend:
    return CountingBackend(clock)


def test_a_prompt_is_computed_in_chunks_with_the_last_logits_only(backend: CountingBackend):
    speed = Work(backend).prefill(1100)
    assert backend.steps == [[(0, 512, "none")], [(512, 512, "none")], [(1024, 76, "last")]]
    assert speed == pytest.approx(1100 / (3 * 0.010 + 0.001 * 1097))


def test_single_tokens_are_timed_behind_their_depth_which_is_filled_once(backend: CountingBackend):
    work = Work(backend)
    assert work.decode(700, 0.1) == pytest.approx(100)
    assert work.decode(700, 0.1) == pytest.approx(100)
    assert backend.steps[:4] == [[(0, 512, "none")], [(512, 188, "none")], [(700, 1, "last")], [(701, 1, "last")]]
    assert sum(step[0][1] > 1 for step in backend.steps) == 2
    assert work.fill(700).length == 700


def test_a_window_never_leaves_the_room_it_was_given(backend: CountingBackend):
    Work(backend).decode(0, 1e9)
    Work(backend).decode(4000, 1e9)
    depths = [step[0][0] for step in backend.steps if step[0][1] == 1]
    assert depths == [*range(bench.WINDOW_TOKENS), *range(4000, backend.context_length)]


def test_a_batch_counts_the_tokens_of_all_its_sequences(backend: CountingBackend):
    assert Work(backend).batch(8, 0.1) == pytest.approx(8 / 0.017)
    assert all(len(step) == 8 and {tokens for _, tokens, _ in step} == {1} for step in backend.steps)


def test_a_verification_wants_the_logits_of_all_its_tokens_at_one_depth(backend: CountingBackend):
    assert Work(backend).verify_step(32, 8, 0.1) == pytest.approx(0.017)
    assert set(map(tuple, backend.steps[1:])) == {((32, 8, "all"),)}


def test_verification_costs_are_in_single_steps_with_the_drafts_that_pay_for_them(backend: CountingBackend, golden):
    plan = Plan(prefill=(), decode=(), batch=(), verify=11, repeats=3)
    with open_checkpoint(golden / "minicpm2b_tied") as checkpoint:
        steps = measure(backend, checkpoint, plan).verifications
    assert [step.tokens for step in steps] == list(range(1, 12))
    assert [step.cost for step in steps] == pytest.approx([1 + 0.1 * i for i in range(11)])
    assert steps[0].break_even_acceptance is None
    assert [step.break_even_acceptance for step in steps[1:]] == pytest.approx([0.1] * 10)


def test_under_a_window_no_more_is_read_than_is_attended_to(backend: CountingBackend, golden: Path):
    backend.window = SlidingWindow(64)  # type: ignore[attr-defined]
    plan = Plan(prefill=(), decode=(0, 50, 1000), batch=(), verify=0, repeats=1, window_s=0.1)
    with open_checkpoint(golden / "minicpm2b_tied") as checkpoint:
        weights, config = step_weight_bytes(checkpoint), checkpoint.config
        speeds = measure(backend, checkpoint, plan).speeds
    assert [speed.bytes_per_step for speed in speeds] == [
        weights + tokens * backend.cache_bytes_per_token for tokens in (0, 50, 16 + 64 + 1000 % 16)
    ]
    pairs = sum(q < 16 or p // 16 - q // 16 <= 4 for p in range(200) for q in range(p + 1))
    products = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    less = (200 * 201 / 2 - pairs) * products
    assert prompt_operations(config, 200, backend.window) == prompt_operations(config, 200) - less  # type: ignore[attr-defined]


def test_a_percentage_is_of_the_peak_beside_the_window(backend: CountingBackend, golden: Path):
    plan = Plan(prefill=(100,), decode=(0, 500), batch=(4,), verify=0, repeats=2, window_s=0.1)
    with open_checkpoint(golden / "minicpm2b_tied") as checkpoint:
        weights = step_weight_bytes(checkpoint)
        found = measure(backend, checkpoint, plan, peaks=KnownPeaks)
        operations = prompt_operations(checkpoint.config, 100)
    prefill, shallow, deep, batch = found.speeds
    assert shallow.bytes_per_step == batch.bytes_per_step == weights
    assert deep.bytes_per_step == weights + 500 * backend.cache_bytes_per_token
    assert shallow.of_bandwidth == pytest.approx(100 * weights / 2e9)
    assert deep.of_bandwidth == pytest.approx(100 * deep.bytes_per_step / 2e9)
    assert batch.of_bandwidth == pytest.approx(weights / 0.013 / 2e9)
    assert prefill.of_integer_peak == pytest.approx(operations / 0.109 / 2e9)
    assert (prefill.of_bandwidth, shallow.of_integer_peak) == (None, None)
    assert found.read_bandwidth is not None
    assert found.read_bandwidth.windows == (1e9, 3e9) * 6


def test_memory_is_looked_at_before_the_peaks_take_theirs(
    backend: CountingBackend, golden: Path, monkeypatch: pytest.MonkeyPatch
):
    order: list[str] = []
    monkeypatch.setattr(bench, "peak_rss_bytes", lambda: order.append("memory"))
    with open_checkpoint(golden / "minicpm2b_tied") as checkpoint:
        found = measure(backend, checkpoint, Plan((), (64,), (), 0, 1), peaks=lambda: order.append("peaks"))
    assert order == ["memory", "peaks"]
    assert found.peak_rss_tokens == 64


@pytest.mark.parametrize(
    "plan",
    [
        {"prefill": (0,)},
        {"decode": (-1,)},
        {"batch": (0,)},
        {"batch": (2, 2)},
        {"verify": 65},
        {"repeats": 0},
        {"window_s": 0},
        {"prefill": (), "decode": (), "batch": (), "verify": 0},
    ],
    ids=str,
)
def test_an_impossible_plan_is_refused(plan: dict[str, object]):
    with pytest.raises(ValueError):
        replace(Plan(), **plan)


def test_a_depth_beyond_the_context_is_refused_before_anything_is_computed(backend: CountingBackend, golden: Path):
    with open_checkpoint(golden / "minicpm2b_tied") as checkpoint, pytest.raises(ValueError, match="holds 4096"):
        measure(backend, checkpoint, Plan(decode=(4090,)))
    assert backend.steps == []


def test_a_plan_for_more_memory_than_there_is_is_refused(clock: Clock, golden: Path):
    backend = CountingBackend(clock, free_bytes=1_000_000)
    with open_checkpoint(golden / "minicpm2b_tied") as checkpoint, pytest.raises(ValueError, match="GB are free"):
        measure(backend, checkpoint, Plan())


# --- bytes and operations ----------------------------------------------------------------------------------------


def test_a_step_reads_all_weights_but_an_embedding_that_is_no_head(golden: Path):
    with open_checkpoint(golden / "minicpm2b_tied") as checkpoint:
        assert step_weight_bytes(checkpoint) == checkpoint.nbytes
        assert step_weight_bytes(checkpoint, "bfloat16") == checkpoint.nbytes // 2
    with open_checkpoint(golden / "minicpm2b_untied_sharded") as checkpoint:
        config = checkpoint.config
        assert step_weight_bytes(checkpoint) == checkpoint.nbytes - 4 * config.vocab_size * config.hidden_size


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_quantized_step_reads_codes_and_scales(tmp_path: Path, is_tied: bool):
    config = replace(WIDE, tie_word_embeddings=is_tied)
    write_model(tmp_path / "float", config, random_weights(config))
    quantize_folder(tmp_path / "float", tmp_path / "int4", preset="int4")
    shapes = config.parameter_shapes()
    inner = sum(N * K for name, (N, K) in ((n, s) for n, s in shapes.items() if "proj" in n))
    norms = sum(4 * shape[0] for shape in shapes.values() if len(shape) == 1)
    head = config.vocab_size * config.hidden_size
    with open_checkpoint(tmp_path / "int4", allow_quantized=True) as checkpoint:
        # Groups of 64 with scales of 2 bytes; the head, tied or not, in 8 bits.
        assert step_weight_bytes(checkpoint) == inner / 2 + inner / 32 + head + head / 32 + norms


def test_a_prompt_of_the_true_minicpm_takes_the_known_operations(real_configs: Path):
    """2.4419 billion weights in the layers, a head of 0.2828 (once), 40 x 36 heads of 64 over the tokens before."""
    config = DecoderConfig.from_dict(read_config_json(real_configs / "MiniCPM-2B-sft-bf16" / "config.json"))
    attention = 4 * 40 * 36 * 64 * (512 * 513 / 2)
    assert prompt_operations(config, 512) == pytest.approx(2 * (2.4419e9 * 512 + 0.2828e9) + attention, rel=1e-4)


# --- the machine -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", every_isa())
def test_every_instruction_set_has_its_peaks(isa: str):
    machine = native.extension().Machine(isa=isa, threads=2, memory_bytes=1 << 20)
    assert machine.threads == 2
    assert 0 < machine.read_bandwidth() < 1e15
    assert 0 < machine.product_rate(0.001) < 1e15


def test_peaks_are_rates_that_a_machine_can_have():
    pytest.importorskip("minicpm._native")
    peaks = Peaks(native.isa(), 1, memory_bytes=1 << 20)
    assert 1e7 < peaks.read_bandwidth() < 1e13
    assert 1e7 < peaks.integer_rate() < 1e15


@pytest.mark.parametrize(
    "wrong",
    [{"isa": "mmx"}, {"threads": 0}, {"threads": 2000}, {"memory_bytes": 0}, {"memory_bytes": 1 << 50}],
    ids=str,
)
def test_a_machine_that_cannot_be_is_refused(wrong: dict[str, object]):
    extension = pytest.importorskip("minicpm._native")
    with pytest.raises(ValueError):
        extension.Machine(**{"isa": "generic", "threads": 1, "memory_bytes": 1024, **wrong})


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), 1e9])
def test_a_peak_takes_a_time_that_can_be(seconds: float):
    extension = pytest.importorskip("minicpm._native")
    with pytest.raises(ValueError):
        extension.Machine(isa="generic", threads=1, memory_bytes=1024).product_rate(seconds)
