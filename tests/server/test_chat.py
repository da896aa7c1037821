"""Chats and completions over HTTP, asked with the official client."""

from __future__ import annotations

import base64
import json
import struct

import httpx
import numpy as np
import openai
import pytest

from minicpm import LLM
from server.conftest import Direct
from server.running import Running

QUESTION = [{"role": "user", "content": "What is the capital of Japan?"}]
STORY = [{"role": "user", "content": "Tell me a story about a brave rabbit."}]


@pytest.fixture(scope="module")
def official(nano: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{nano.url}/v1", api_key="none", max_retries=0)


def test_an_answer_is_that_of_the_engine(official: openai.OpenAI, direct: Direct):
    answer = official.chat.completions.create(model="minicpm-nano", messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == "The capital of Japan is Tokyo."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "minicpm-nano"
    expected = direct.chat("What is the capital of Japan?", temperature=0)
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.completion_tokens == expected.usage.completion_tokens
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_an_answer_ends_at_its_limit(official: openai.OpenAI, limit: str):
    answer = official.chat.completions.create(model="nano", messages=STORY, **{limit: 5})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5


def test_streamed_parts_join_to_the_whole(official: openai.OpenAI):
    asked = {"model": "nano", "messages": STORY, "seed": 7, "max_tokens": 60}
    whole = official.chat.completions.create(**asked)
    chunks = list(official.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_without_stream_options_no_chunk_has_usage(official: openai.OpenAI):
    chunks = list(official.chat.completions.create(model="nano", messages=QUESTION, stream=True, temperature=0))
    assert all(c.choices and c.usage is None for c in chunks)


def test_the_same_seed_gives_the_same_answer_and_others_do_not(official: openai.OpenAI):
    def told(seed: int) -> str:
        answer = official.chat.completions.create(
            model="nano", messages=STORY, seed=seed, temperature=1.5, top_p=1, max_tokens=40
        )
        return answer.choices[0].message.content

    assert told(1) == told(1)
    assert len({told(seed) for seed in range(4)}) > 1


def test_the_seed_an_answer_names_gives_it_again(official: openai.OpenAI):
    first = official.chat.completions.create(model="nano", messages=STORY, temperature=1.2, max_tokens=40)
    again = official.chat.completions.create(
        model="nano", messages=STORY, temperature=1.2, max_tokens=40, seed=first.model_extra["seed"]
    )
    assert again.choices[0].message.content == first.choices[0].message.content


def test_choices_differ_and_the_first_is_that_of_one_alone(official: openai.OpenAI):
    asked = {"model": "nano", "messages": STORY, "seed": 3, "temperature": 1.5, "top_p": 1, "max_tokens": 30}
    several = official.chat.completions.create(**asked, n=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in several.choices]
    assert len(set(texts)) == 3
    alone = official.chat.completions.create(**asked)
    assert texts[0] == alone.choices[0].message.content
    assert several.usage.prompt_tokens == alone.usage.prompt_tokens
    streamed = ["", "", ""]
    for chunk in official.chat.completions.create(**asked, n=3, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


@pytest.mark.parametrize("stop", ["Tokyo", [" is", "Tokyo"]])
def test_a_stop_string_ends_the_answer_before_it(official: openai.OpenAI, stop: str | list[str]):
    answer = official.chat.completions.create(model="nano", messages=QUESTION, temperature=0, stop=stop)
    expected = {"Tokyo": "The capital of Japan is "}.get(str(stop), "The capital of Japan")
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_logprobs_are_of_every_token_and_its_best_alternatives(official: openai.OpenAI, stream: bool):
    asked = {"model": "nano", "messages": QUESTION, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    if stream:
        chunks = list(official.chat.completions.create(**asked, stream=True))
        tokens = [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    else:
        tokens = official.chat.completions.create(**asked).choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode().strip() == "The capital of Japan is Tokyo."
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token  # greedy
        assert token.logprob == token.top_logprobs[0].logprob <= 0


def test_logit_bias_forbids_a_token(official: openai.OpenAI, direct: Direct):
    (tokyo,) = {direct.chat("What is the capital of Japan?", temperature=0).ids[5]}
    answer = official.chat.completions.create(
        model="nano", messages=QUESTION, temperature=0, logit_bias={str(tokyo): -100}
    )
    assert answer.choices[0].message.content != "The capital of Japan is Tokyo."


def test_our_own_options_are_extra_fields(official: openai.OpenAI):
    extra = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.0}
    answers = {
        official.chat.completions.create(model="nano", messages=QUESTION, temperature=2, seed=seed, extra_body=extra)
        .choices[0]
        .message.content
        for seed in range(3)
    }
    assert answers == {"The capital of Japan is Tokyo."}


def test_a_conversation_goes_on_with_the_message_that_came(official: openai.OpenAI):
    first = official.chat.completions.create(model="nano", messages=QUESTION, temperature=0)
    turns = [*QUESTION, first.choices[0].message, {"role": "user", "content": "What is 7 plus 5?"}]
    assert official.chat.completions.create(model="nano", messages=turns, temperature=0).choices[0].message.content


def test_parts_of_text_are_one_text(official: openai.OpenAI):
    parts = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": "of Japan?"}]
    asked = official.chat.completions.create(model="nano", messages=[{"role": "user", "content": parts}], max_tokens=1)
    joined = [{"role": "user", "content": "What is the capital\nof Japan?"}]
    assert (
        asked.usage.prompt_tokens
        == official.chat.completions.create(model="nano", messages=joined, max_tokens=1).usage.prompt_tokens
    )


# --- Completions ---------------------------------------------------------------------------------------------


def test_a_completion_continues_the_text(official: openai.OpenAI, direct: Direct):
    answer = official.completions.create(model="nano", prompt="Once upon a time", temperature=0, max_tokens=12)
    expected = direct.generate("Once upon a time", temperature=0, max_tokens=12)
    assert answer.choices[0].text == expected.text
    echoed = official.completions.create(
        model="nano", prompt="Once upon a time", temperature=0, max_tokens=12, echo=True
    )
    assert echoed.choices[0].text == "Once upon a time" + expected.text


def test_prompts_are_texts_or_ids_one_or_many(official: openai.OpenAI, llm: LLM):
    texts = ["Once upon a time", "The capital of"]
    ids = [llm.tokenizer.encode(text) for text in texts]
    by_text = official.completions.create(model="nano", prompt=texts, temperature=0, max_tokens=6, n=2)
    by_ids = official.completions.create(model="nano", prompt=ids, temperature=0, max_tokens=6, n=2)
    assert [choice.text for choice in by_text.choices] == [choice.text for choice in by_ids.choices]
    assert len(by_text.choices) == 4
    assert by_text.usage.prompt_tokens == sum(map(len, ids))
    one = official.completions.create(model="nano", prompt=ids[1], temperature=0, max_tokens=6)
    assert one.choices[0].text == by_text.choices[2].text


def test_streamed_completions_join_to_the_whole(official: openai.OpenAI):
    asked = {"model": "nano", "prompt": ["Once", "The"], "temperature": 0, "max_tokens": 9, "echo": True}
    whole = official.completions.create(**asked)
    texts = ["", ""]
    for chunk in official.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_completion_logprobs_have_the_older_form(official: openai.OpenAI, stream: bool):
    asked = {"model": "nano", "prompt": "Once upon a", "temperature": 0, "max_tokens": 4, "logprobs": 2}
    if stream:
        parts = [c.choices[0].logprobs for c in official.completions.create(**asked, stream=True)]
        parts = [part for part in parts if part]
    else:
        parts = [official.completions.create(**asked).choices[0].logprobs]
    tokens = [token for part in parts for token in part.tokens]
    offsets = [offset for part in parts for offset in part.text_offset]
    assert len(tokens) == 4
    assert offsets == [len("".join(tokens[:number])) for number in range(4)]
    assert all(len(top) == 2 and top[token] == logprob for part in parts
               for top, token, logprob in zip(part.top_logprobs, part.tokens, part.token_logprobs))  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_token_that_was_taken_is_always_among_the_likeliest(client: httpx.Client, count: int, stream: bool):
    body = {"prompt": "Once upon a time there", "max_tokens": 8, "temperature": 3.0, "seed": 3, "logprobs": count}
    if stream:
        events = client.post("/v1/completions", json={**body, "stream": True}).text.split("\n\n")
        chunks = [json.loads(event.removeprefix("data: ")) for event in events if event.startswith("data: {")]
        parts = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["logprobs"]]
    else:
        parts = [client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]]
    places = [place for part in parts for place in zip(part["tokens"], part["top_logprobs"], part["token_logprobs"])]
    assert len(places) == 8 and any(len(top) == count + 1 for _, top, _ in places)
    for token, top, logprob in places:
        assert token in top and count <= len(top) <= count + 1
        assert "\ufffd" in token or top[token] == logprob


def test_a_prompt_of_null_begins_a_text(client: httpx.Client, llm: LLM):
    asked = {"temperature": 0, "max_tokens": 5}
    begun = client.post("/v1/completions", json={"prompt": None, **asked}).json()
    same = client.post("/v1/completions", json={"prompt": [llm.tokenizer.bos_token_id], **asked}).json()
    assert begun["choices"][0]["text"] == same["choices"][0]["text"] and begun["usage"] == same["usage"]


# --- The other routes ----------------------------------------------------------------------------------------


def test_embeddings_are_those_of_the_engine(official: openai.OpenAI, client: httpx.Client, direct: Direct, llm: LLM):
    texts = ["A cat sleeps.", "A kitten is asleep."]
    answer = official.embeddings.create(model="nano", input=texts)  # the client asks for base64
    got = np.array([entry.embedding for entry in answer.data])
    assert np.array_equal(got.astype(np.float32), direct.embed(texts))
    assert answer.usage.prompt_tokens == sum(len(llm.tokenizer.encode(text)) for text in texts)
    plain = client.post("/v1/embeddings", json={"input": texts[0]}).json()["data"][0]["embedding"]
    packed = client.post("/v1/embeddings", json={"input": texts[0], "encoding_format": "base64"}).json()
    data = base64.b64decode(packed["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(data) // 4}f", data)) == plain


def test_models_are_listed_by_every_name(official: openai.OpenAI):
    assert [model.id for model in official.models.list()] == ["minicpm-nano", "nano"]
    assert official.models.retrieve("nano").object == "model"


def test_tokenize_and_detokenize_are_the_models(client: httpx.Client, llm: LLM):
    answer = client.post("/tokenize", json={"prompt": "Hello, world!", "return_token_strs": True}).json()
    assert answer["tokens"] == llm.tokenizer.encode("Hello, world!")
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert client.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": "Hello, world!"}
    chat = client.post("/tokenize", json={"messages": QUESTION}).json()
    assert chat["count"] == llm.prompt_length(QUESTION)


@pytest.mark.parametrize("last", ["user", "assistant"])
def test_tokenize_ends_where_it_is_asked_to(client: httpx.Client, llm: LLM, last: str):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, I "}][: 1 + (last != "user")]

    def tokens(**options: bool) -> list[int]:
        return client.post("/tokenize", json={"messages": turns, **options}).json()["tokens"]

    assert tokens(add_generation_prompt=True) == tokens() == llm.tokenizer.encode(llm.template.render(turns))
    assert tokens(add_generation_prompt=False) == llm.tokenizer.encode(llm.template.render(turns, False))
    expected = "<用户>Hi" if last == "user" else "<用户>Hi<AI>Hello, I "
    assert tokens(continue_final_message=True) == llm.tokenizer.encode(expected)
    assert (
        client.post(
            "/tokenize", json={"messages": turns, "continue_final_message": True, "add_generation_prompt": True}
        ).status_code
        == 400
    )


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_minus_one_is_no_limit(client: httpx.Client, name: str):
    body = {"messages": QUESTION, "temperature": 0, name: -1}
    choice = client.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("The capital of Japan is Tokyo.", "stop")
    assert client.post("/v1/chat/completions", json={**body, name: -2}).status_code == 400


def test_responses_have_the_official_fields_and_the_documented_extras(client: httpx.Client):
    """What the official client does not know lands in model_extra."""
    from openai.types import Completion, CreateEmbeddingResponse, Model
    from openai.types.chat import ChatCompletion, ChatCompletionChunk

    asked = {"messages": QUESTION, "temperature": 0, "logprobs": True, "top_logprobs": 1}
    chat = client.post("/v1/chat/completions", json=asked).json()
    _check_keys(ChatCompletion, chat, {"seed"})
    streamed = client.post("/v1/chat/completions", json={**asked, "stream": True}).text
    for line in streamed.split("\n\n"):
        if line.startswith("data: {"):
            _check_keys(ChatCompletionChunk, json.loads(line[6:]), {"seed"})
    _check_keys(Completion, client.post("/v1/completions", json={"prompt": "a", "logprobs": 1}).json(), {"seed"})
    _check_keys(CreateEmbeddingResponse, client.post("/v1/embeddings", json={"input": "a"}).json(), set())
    _check_keys(Model, client.get("/v1/models/nano").json(), {"max_model_len"})


def _check_keys(kind: type, data: dict, extras: set[str]) -> None:
    """Every field is one of the official model's, however deep, but for the extras; and it validates."""
    parsed = kind.model_validate(data)
    found = set()

    def visit(value: object) -> None:
        if isinstance(value, list):
            for item in value:
                visit(item)
        elif hasattr(value, "model_fields_set"):
            found.update(value.model_extra or {})
            for name in type(value).model_fields:
                visit(getattr(value, name))

    visit(parsed)
    assert found == extras
