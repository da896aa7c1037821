"""LangChain's standard tests of chat models, each asked through one route of a server at MINICPM_TEST_URL.

test_langchain.py runs this file with the pytest of .venv-langchain, over an engine that knows what these tests ask.
"""

from __future__ import annotations

import os
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

URL = os.environ["MINICPM_TEST_URL"]


class _Standard(ChatModelIntegrationTests):
    supports_json_mode = True
    model_override_value = "nano"


class _OpenAI(_Standard):
    chat_model_class: type[BaseChatModel] = ChatOpenAI
    supports_anthropic_inputs = True
    chat_model_params: dict[str, Any] = {  # noqa: RUF012
        "model": "minicpm-nano",
        "base_url": f"{URL}/v1",
        "api_key": "none",
        "max_retries": 0,
        "stream_usage": True,
    }

    usage_details: list[str] = ["cache_read_input"]  # noqa: RUF012

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[str]]:
        return {"invoke": self.usage_details, "stream": self.usage_details}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        model = ChatOpenAI(**self.chat_model_params)
        if not stream:
            return model.invoke("Hello")
        full = AIMessageChunk("")
        for chunk in model.stream("Hello"):
            full += chunk
        return full

    invoke_with_reasoning_output = invoke_with_cache_read_input


class TestChatCompletions(_OpenAI):
    pass


class TestChatCompletionsByFunctions(_OpenAI):
    structured_output_kwargs: dict[str, Any] = {"method": "function_calling"}  # noqa: RUF012


class TestResponses(_OpenAI):
    chat_model_params: dict[str, Any] = {**_OpenAI.chat_model_params, "use_responses_api": True}  # noqa: RUF012
    usage_details: list[str] = ["cache_read_input", "reasoning_output"]  # noqa: RUF012


class TestOllama(_Standard):
    chat_model_class = ChatOllama
    chat_model_params: dict[str, Any] = {"model": "minicpm-nano", "base_url": URL}  # noqa: RUF012
    has_tool_choice = False  # neither ChatOllama nor Ollama's API has one


class TestOllamaByFunctions(TestOllama):
    structured_output_kwargs: dict[str, Any] = {"method": "function_calling"}  # noqa: RUF012
