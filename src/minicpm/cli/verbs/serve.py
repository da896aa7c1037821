"""`minicpm serve`: serves a model over the HTTP APIs of OpenAI and Ollama."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import socket
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from minicpm.cli.arguments import (
    IN_PROCESS_OPTIONS,
    add_engine_arguments,
    count,
    engine_options,
    first_wish,
    load_llm,
    size,
)
from minicpm.cli.listening import add_address_arguments, add_allowed_host_argument, allowed_hosts, is_open
from minicpm.cli.models import resolve_model, served_name
from minicpm.cli.output import printable, talk
from minicpm.cli.progress import format_bytes
from minicpm.cli.text_input import read_text
from minicpm.errors import counted, missing_extra
from minicpm.server.addresses import bind, host_in_url
from minicpm.server.log import LineWriter, logging_to_stderr
from minicpm.server.settings import Settings

if TYPE_CHECKING:
    from minicpm.engine.service import Service

# Options that vLLM's server does not have.
_OURS_ALONE = ("queue_limit", "timeout", "grace", "allowed_host", "log_level", "quiet", *IN_PROCESS_OPTIONS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from minicpm.engine.options import EngineOptions
    from minicpm.engine.service import QUEUE_LIMIT

    parser.description = (
        "Serve a model over OpenAI's HTTP API: /v1/chat/completions, /v1/responses, /v1/completions, /v1/embeddings, "
        "/v1/models, /tokenize, /detokenize, /health, /metrics; and over Ollama's: /api/chat, /api/generate, "
        "/api/embed, /api/tags, /api/show, /api/ps, /api/version. Ctrl-C or SIGTERM lets running answers finish; a "
        "second one ends at once. With --backend vllm it starts vLLM's own server instead (docs/vllm.md)."
    )
    parser.add_argument(
        "vllm_arguments", nargs="*", metavar="-- ARGUMENT", help="arguments that are passed on to vLLM's server"
    )
    add_address_arguments(parser, default_port=8000)
    parser.add_argument(
        "--served-model-name",
        action="append",
        metavar="NAME",
        help="the model's name in requests (repeatable; default: its name or folder's name)",
    )
    engine = parser.add_argument_group("limits")
    engine.add_argument(
        "--max-batch",
        type=count,
        metavar="N",
        help=f"answers generated at once (default: {EngineOptions.max_batch}; vLLM: its own)",
    )
    engine.add_argument(
        "--queue-limit",
        type=count,
        metavar="N",
        help=f"requests that may wait; further ones get status 429 (default: {QUEUE_LIMIT})",
    )
    engine.add_argument(
        "--kv-cache-size",
        type=size,
        metavar="SIZE",
        help="memory for keys and values, such as 2GB (default: as far as memory is free, for --max-batch contexts)",
    )
    engine.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help=f"longest time of one answer (default: {Settings.total_timeout_s:g})",
    )
    engine.add_argument(
        "--grace",
        type=float,
        metavar="S",
        help=f"longest wait of a shutdown for running answers (default: {Settings.grace_s:g})",
    )
    access = parser.add_argument_group("access")
    access.add_argument(
        "--api-key",
        action="append",
        metavar="KEY",
        help="require this key (repeatable; other users of this machine can read it: MINICPM_API_KEY or a file is "
        "safer)",
    )
    access.add_argument("--api-key-file", metavar="FILE", help="require one of the keys in this file, one per line")
    add_allowed_host_argument(access, "a host name that requests may use")
    access.add_argument(
        "--cors-origin",
        action="append",
        metavar="ORIGIN",
        help="allow web pages of this origin, such as https://chat.example (repeatable; * for all)",
    )
    log = parser.add_argument_group("log").add_mutually_exclusive_group()
    log.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        metavar="LEVEL",
        help="debug (libraries, too), info (a line for each request), warning or error (default: info)",
    )
    log.add_argument("--quiet", action="store_true", default=None, help="only the address, warnings and errors")
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.vllm_arguments and not args.vllm_arguments[0].startswith("-"):
        model = args.vllm_arguments[0]
        raise ValueError(f"a model is given with -m; type: minicpm serve -m {shlex.quote(model)}")
    settings = _settings(args)
    if args.backend == "vllm":
        return _hand_over(args, settings)
    if args.vllm_arguments:
        raise ValueError(f"{args.vllm_arguments[0]!r} is an argument of vLLM's server; give --backend vllm, too")
    with missing_extra("minicpm serve", "serve"):
        from minicpm.server import uvicorn_server  # noqa: F401 (before a model is loaded)
    level = getattr(logging, ("warning" if args.quiet else args.log_level or "info").upper())
    # Before loading, which may take long: clients that connect meanwhile wait in the backlog.
    with closing(bind(args.host, args.port)) as listener, logging_to_stderr(level, printable) as log:
        _serve(args, settings, listener, log)
    return 0


def _serve(args: argparse.Namespace, settings: Settings, listener: socket.socket, log: LineWriter) -> None:
    from minicpm.engine.service import QUEUE_LIMIT, Service
    from minicpm.server.answers import Serving
    from minicpm.server.model import ServedModel
    from minicpm.server.uvicorn_server import Server

    llm = load_llm(args, max_batch=args.max_batch, kv_cache_bytes=args.kv_cache_size)
    service = Service(llm, queue_limit=args.queue_limit or QUEUE_LIMIT)
    try:
        model = ServedModel.of(llm, args.served_model_name or [served_name(args.model, llm.folder)])
        url = f"http://{host_in_url(args.host)}:{listener.getsockname()[1]}"
        warning = _warning(args, settings)
        server = Server(
            Serving(service, model, settings),
            on_ready=lambda: log.put(printable(_start_text(url, service, model.names[0], warning, args.quiet))),
        )
        server.run([listener])
    finally:
        service.close(0)


def _hand_over(args: argparse.Namespace, settings: Settings) -> int:
    """Serve the model with vLLM's own server."""
    from minicpm.server.vllm import VllmServer, serve

    if wish := first_wish(args, _OURS_ALONE):
        raise ValueError(f"{wish} is for minicpm's own server; give vLLM's server its own options after --")
    options = engine_options(args, max_batch=args.max_batch, kv_cache_bytes=args.kv_cache_size)
    folder = resolve_model(args, args.model)
    server = VllmServer(
        args.host,
        args.port,
        args.served_model_name or [served_name(args.model, folder)],
        options,
        max_batch=args.max_batch,
        api_keys=settings.api_keys,
        cors_origins=settings.cors_origins,
        arguments=args.vllm_arguments,
    )
    if warning := _warning(args, settings):
        talk(f"warning: {warning}")
    return serve(folder, server)


def _settings(args: argparse.Namespace) -> Settings:
    keys = list(args.api_key or [])
    if key := os.environ.get("MINICPM_API_KEY"):
        keys.append(key)
    if args.api_key_file:
        found = [line.strip() for line in read_text(Path(args.api_key_file)).splitlines() if line.strip()]
        if not found:
            raise ValueError(f"{args.api_key_file} holds no key; write one per line")
        keys += found
    cors_origins = tuple(args.cors_origin or ())
    settings = Settings(api_keys=tuple(keys), allowed_hosts=allowed_hosts(args), cors_origins=cors_origins)
    times = {"total_timeout_s": args.timeout, "grace_s": args.grace}
    return replace(settings, **{name: seconds for name, seconds in times.items() if seconds is not None})


def _warning(args: argparse.Namespace, settings: Settings) -> str | None:
    if settings.api_keys or not is_open(args):
        return None
    return f"everyone who can reach {args.host} can use the model; --api-key-file FILE requires a key"


def _start_text(url: str, service: Service, name: str, warning: str | None, is_quiet: bool | None) -> str:
    """Where the model is served and, unless it is to be quiet, which one and how many answers at once."""
    llm, cache_tokens = service.llm, service.statistics().cache_tokens
    lines = [f"{name} is served at {url}/v1"]
    if not is_quiet:
        lines += [
            f"  model    {llm.folder}, {llm.backend.name} backend, context {llm.context_length:,} tokens",
            f"  at once  {counted(llm.options.max_batch, 'answer')}, {service.queue_limit} more may wait; keys and "
            f"values of {cache_tokens:,} tokens, "
            f"{format_bytes(cache_tokens * llm.backend.cache_bytes_per_token)} at most",
        ]
    if warning is not None:
        lines.append(f"  warning  {warning}")
    return "\n".join(lines)
