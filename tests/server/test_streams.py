"""Many streams at once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import httpx
import pytest

from server.conftest import Direct
from server.running import Running
from server.stub import StubEngine

WORDS = 20


@pytest.mark.parametrize("streams", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_many_streams_lose_and_repeat_nothing(start: Callable[..., Running], streams: int):
    engine = StubEngine([f" word{number}" for number in range(WORDS)], delay_s=0.2)
    server = start(engine)

    async def everything() -> list[str]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            return await asyncio.gather(*(_stream(client, "Hello!", WORDS) for _ in range(streams)))

    begin, cpu = time.perf_counter(), time.process_time()
    texts = asyncio.run(everything())
    print(f"{streams * WORDS / (time.perf_counter() - begin):.0f} events/s, {time.process_time() - cpu:.1f} s CPU")
    assert texts == ["".join(engine.words)] * streams
    assert engine.alive == 0


def test_many_real_streams_are_each_what_one_alone_is(nano: Running, direct: Direct):
    questions = [f"What is {number} plus {other}?" for number in range(8) for other in range(4)]

    async def everything() -> list[str]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=nano.url, timeout=120, limits=limits) as client:
            return await asyncio.gather(*(_stream(client, question, 30) for question in questions))

    assert asyncio.run(everything()) == [direct.chat(q, temperature=0, max_tokens=30).text for q in questions]


async def _stream(client: httpx.AsyncClient, question: str, max_tokens: int) -> str:
    body = {"messages": [{"role": "user", "content": question}], "stream": True, "max_tokens": max_tokens}
    parts = []
    async with client.stream("POST", "/v1/chat/completions", json={**body, "temperature": 0}) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return "".join(parts)
            if line.startswith("data: "):  # a silent stream has comments, too
                parts.append(json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", ""))
    raise AssertionError("the stream ended without [DONE]")
