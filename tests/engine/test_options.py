"""EngineOptions: every entry point refuses invalid values."""

from __future__ import annotations

import argparse
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minicpm import LLM, EngineOptions
from minicpm.cli.arguments import add_engine_arguments, engine_options
from minicpm.engine.options import CHOICES

COUNTS = ("context", "threads", "max_batch", "kv_cache_bytes")
good: dict[str, st.SearchStrategy[Any]] = {
    **{name: st.sampled_from(choices) for name, choices in CHOICES.items()},
    **{name: st.integers(1, 1 << 40) for name in COUNTS},
    "sliding_window": st.integers(1, 100).map(lambda blocks: 16 * blocks),
    "attention_sinks": st.integers(1, 100).map(lambda blocks: 16 * blocks),
    "device": st.sampled_from(("auto", "cpu", "cuda", "cuda:1")),
}
bad: dict[str, st.SearchStrategy[Any]] = {
    **{name: st.text().filter(lambda text, known=known: text not in known) for name, known in CHOICES.items()},
    **{name: st.integers(max_value=0) | st.booleans() | st.floats() | st.text() for name in COUNTS},
    "sliding_window": st.integers().filter(lambda tokens: tokens < 16 or tokens % 16 > 0),
}
good_options = st.fixed_dictionaries({}, optional=good)


@given(good_options)
def test_options_keep_what_they_were_given_and_compare_by_it(values: dict[str, Any]):
    options = EngineOptions(**values)
    assert {name: getattr(options, name) for name in values} == values
    assert options == EngineOptions(**values) and hash(options) == hash(EngineOptions(**values))
    assert replace(options) == options


@given(good_options, st.data())
def test_one_bad_value_among_good_ones_is_named(values: dict[str, Any], data: st.DataObject):
    name = data.draw(st.sampled_from(sorted(bad)))
    with pytest.raises(ValueError, match=f"^{name} must be "):
        EngineOptions(**{**values, name: data.draw(bad[name])})


@given(good_options, st.sampled_from([field.name for field in fields(EngineOptions)]))
def test_options_never_change(values: dict[str, Any], name: str):
    with pytest.raises(FrozenInstanceError):
        setattr(EngineOptions(**values), name, None)


def test_options_of_vllm_are_a_copy():
    given_options = {"tensor_parallel_size": 2}
    options = EngineOptions(backend="vllm", vllm_options=given_options)
    given_options["tensor_parallel_size"] = 4
    assert options.vllm_options == {"tensor_parallel_size": 2}


def test_fields_and_options_make_the_same_engine():
    one = LLM(backend="numpy", context=128, max_batch=2)
    other = LLM(options=EngineOptions(backend="numpy", context=128, max_batch=2))
    assert one.options == other.options
    assert one.context_length == other.context_length == 128
    assert one.steps.cache.tokens == other.steps.cache.tokens == 3 * 128


def test_options_and_fields_at_once_are_refused():
    with pytest.raises(TypeError, match="options or their single fields, not both; put max_batch, context into"):
        LLM(options=EngineOptions(), max_batch=2, context=64)


@pytest.mark.parametrize("options", [None, EngineOptions()])
def test_unknown_fields_are_named_with_those_there_are(options: EngineOptions | None):
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'bakend', 'max_bach'; there are: backend, dtype"):
        LLM(options=options, bakend="numpy", max_bach=2, context=64)


def test_the_command_line_says_every_field_that_it_has_an_option_for():
    parser = argparse.ArgumentParser()
    add_engine_arguments(parser)
    assert engine_options(parser.parse_args([])) == EngineOptions()
    words = "--backend native --dtype float16 --device cpu --context 64 --sliding-window 32 --attention-sinks 48 "
    words += "--kv-cache-dtype int8 --threads 3 --no-lookup"
    assert engine_options(parser.parse_args(words.split()), max_batch=5, kv_cache_bytes=7) == EngineOptions(
        backend="native",
        dtype="float16",
        device="cpu",
        context=64,
        sliding_window=32,
        attention_sinks=48,
        kv_cache_dtype="int8",
        threads=3,
        lookup="off",
        max_batch=5,
        kv_cache_bytes=7,
    )
    vllm = engine_options(parser.parse_args(["--backend", "vllm", "--tensor-parallel-size", "2"]))
    assert vllm == EngineOptions(backend="vllm", vllm_options={"tensor_parallel_size": 2})
