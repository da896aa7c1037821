"""A Source over a server with OpenAI's protocol: `minicpm serve`, vLLM's, llama.cpp's and others."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from minicpm.chat import Message
from minicpm.demo.source import Meter, Progress, SourceError
from minicpm.errors import HubError, one_line
from minicpm.hub import network
from minicpm.sampling import SamplingParams
from minicpm.server.addresses import LOOPBACK_HOSTS

_CONNECT_TIMEOUT_S = 10.0
_SILENCE_TIMEOUT_S = 600.0  # prefill of a long prompt on a small machine takes minutes


class RemoteSource:
    """A Source of the server at `url`, such as http://127.0.0.1:8000/v1. It uses `model`, or the server's first.

    `stop` are stop strings to send with requests. Raises ValueError for an invalid address, SourceError if the server
    does not answer or has no such model.
    """

    def __init__(self, url: str, api_key: str | None = None, model: str | None = None, stop: Sequence[str] = ()):
        host = _host_of(url)
        if host is None:
            raise ValueError(f"a server's address is written like http://127.0.0.1:8000/v1, got {url!r:.100}")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("an API key has printable ASCII characters only")
        self._url = url.rstrip("/")
        self._stop = list(stop)
        self._options: dict[str, Any] = {
            "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
            "timeout": httpx.Timeout(_SILENCE_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            # A proxy for other hosts cannot reach this machine's servers.
            "trust_env": host not in LOOPBACK_HOSTS,
        }
        if self._options["trust_env"]:
            try:
                network.check_settings()
            except HubError as error:
                raise SourceError(str(error)) from error
        self.sampling = SamplingParams()
        self.engine = self._url
        self.model, self.context_length = self._chosen_model(model)

    async def answer(self, messages: Sequence[Message], sampling: SamplingParams) -> AsyncGenerator[Progress, None]:
        """As Source.answer."""
        meter, finish_reason, tokens = Meter(), None, None
        try:
            async with (
                httpx.AsyncClient(**self._options) as client,
                client.stream(
                    "POST", f"{self._url}/chat/completions", json=self._request(messages, sampling)
                ) as response,
            ):
                if response.is_error:
                    await response.aread()
                    raise SourceError(self._said(response))
                async for event in self._events(response):
                    if event.get("usage"):
                        tokens = int(event["usage"]["completion_tokens"])
                    for choice in event.get("choices") or ():
                        finish_reason = choice.get("finish_reason") or finish_reason
                        if piece := choice["delta"].get("content"):
                            yield meter.hear(piece)
        except httpx.HTTPError as error:
            raise SourceError(self._unreachable(error) if not meter.tokens else self._broke_off()) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SourceError(f"{self._url} does not speak OpenAI's protocol") from error
        if finish_reason is None:
            raise SourceError(self._broke_off())
        yield meter.progress(finish_reason, tokens=tokens)

    async def _events(self, response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            event = json.loads(data)
            if "error" in event:
                raise SourceError(self._says(event["error"]["message"]))
            yield event

    def _request(self, messages: Sequence[Message], sampling: SamplingParams) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
        }
        if self._stop:
            request["stop"] = self._stop
        # OpenAI's own service does not know this field. Servers that report their context do, and may have another
        # default, so they always get it. Others get it only if it has an effect.
        if self.context_length is not None or sampling.repetition_penalty != 1:
            request["repetition_penalty"] = sampling.repetition_penalty
        return request

    def _chosen_model(self, wanted: str | None) -> tuple[str, int | None]:
        """The model's name and, if the server reports it as `max_model_len` (ours and vLLM's do), its context."""
        try:
            with httpx.Client(**self._options) as client:
                response = client.get(f"{self._url}/models")
            if response.is_error:
                raise SourceError(self._said(response))
            models = {str(model["id"]): model.get("max_model_len") for model in response.json()["data"]}
        except httpx.HTTPError as error:
            raise SourceError(self._unreachable(error)) from error
        except httpx.InvalidURL as error:  # of NO_PROXY: the address itself was checked
            raise SourceError(f"NO_PROXY cannot be read ({one_line(str(error))}); correct or unset it") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SourceError(
                f"{self._url}/models is not a list of models; is it an OpenAI-compatible server's address, with /v1?"
            ) from error
        except Exception as error:
            if (sentence := network.no_socks(error)) is None:
                raise
            raise SourceError(sentence) from error
        if not models or wanted not in (None, *models):
            there = one_line(", ".join(models)) or "none"
            raise SourceError(f"{self._url} serves no model {wanted or ''}; there is: {there}")
        name = wanted or next(iter(models))
        context = models[name]
        return name, context if isinstance(context, int) and context > 0 else None

    def _said(self, response: httpx.Response) -> str:
        if response.status_code == 407:  # a proxy answers in the server's place
            return network.refused(network.proxy_for(self._url))
        try:
            message = response.json()["error"]["message"]
        except (ValueError, TypeError, KeyError):
            message = f"status {response.status_code} and no explanation"
        return self._says(message)

    def _says(self, message: object) -> str:
        return f"{self._url} says: {one_line(str(message), 500)}"

    def _unreachable(self, error: Exception) -> str:
        if (distrust := network.distrust(error, self._url)) is not None:
            return distrust
        proxy = network.proxy_for(self._url) if self._options["trust_env"] else None
        if proxy is not None:
            why = one_line(str(error)) or type(error).__name__
            return f"{self._url} does not answer through the proxy {proxy} ({why}); NO_PROXY names hosts without proxy"
        return f"{self._url} does not answer; is the server running, and is this its address?"

    def _broke_off(self) -> str:
        return f"{self._url} broke off before the answer was complete"


def _host_of(url: str) -> str | None:
    """The host of a server's address; None for what is no such address."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number, or a bracket that is not closed
        return None
    return parts.hostname or None if is_address else None
