"""`minicpm serve`: the model behind an OpenAI-compatible HTTP API."""

from __future__ import annotations

import argparse
import logging
import os
import re
import socket
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from minicpm.cli.arguments import (
    IN_PROCESS_OPTIONS,
    add_engine_arguments,
    count,
    engine_options,
    first_wish,
    load_llm,
    port,
)
from minicpm.cli.output import printable, talk
from minicpm.cli.progress import format_bytes
from minicpm.cli.text_input import read_text
from minicpm.errors import MissingExtra

if TYPE_CHECKING:
    from minicpm.engine.service import Service
    from minicpm.server.settings import Settings

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Options that only our own server has, and what they are where nobody gives them.
_OURS_ALONE = {
    "queue_limit": 256,
    "timeout": 3600.0,
    "grace": 30.0,
    "allowed_host": None,
}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Answer over HTTP as OpenAI's API does: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models, "
        "/tokenize, /detokenize, /health, /metrics. Ctrl-C or SIGTERM lets answers finish, a second one does not. "
        "With --backend vllm it hands over to vLLM's own server (docs/vllm.md)."
    )
    parser.add_argument(
        "vllm_arguments", nargs="*", metavar="-- ARGUMENT", help="arguments for vLLM's server as it takes them"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument("--port", type=port, default=8000, metavar="N", help="0 takes a free one (default: 8000)")
    parser.add_argument(
        "--served-model-name",
        action="append",
        metavar="NAME",
        help="what requests call the model (repeatable; default: its name or folder's name)",
    )
    engine = parser.add_argument_group("how many at once")
    engine.add_argument(
        "--max-batch", type=count, metavar="N", help="answers written at once (default: 8; vLLM: its own)"
    )
    engine.add_argument(
        "--queue-limit",
        type=count,
        default=_OURS_ALONE["queue_limit"],
        metavar="N",
        help="answers that may wait; more get 429 (default: 256)",
    )
    engine.add_argument(
        "--kv-cache-size",
        type=_size,
        metavar="SIZE",
        help="memory for keys and values, such as 2GB (default: as far as memory is free, for --max-batch contexts)",
    )
    engine.add_argument(
        "--timeout",
        type=float,
        default=_OURS_ALONE["timeout"],
        metavar="S",
        help="longest time of one answer (default: 3600)",
    )
    engine.add_argument(
        "--grace",
        type=float,
        default=_OURS_ALONE["grace"],
        metavar="S",
        help="what a shutdown waits for answers (default: 30)",
    )
    access = parser.add_argument_group("who may ask")
    access.add_argument(
        "--api-key",
        action="append",
        metavar="KEY",
        help="ask for this key (repeatable; others on this machine can read it: MINICPM_API_KEY or a file is better)",
    )
    access.add_argument("--api-key-file", metavar="FILE", help="ask for one of these keys, one a line")
    access.add_argument(
        "--allowed-host",
        action="append",
        metavar="NAME",
        help="a name requests may address (repeatable; * for any; default: this machine's on 127.0.0.1, else any)",
    )
    access.add_argument(
        "--cors-origin",
        action="append",
        metavar="ORIGIN",
        help="let web pages of this origin ask, such as https://chat.example (repeatable; * for all)",
    )
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    settings = _settings(args)
    if args.backend == "vllm":
        return _hand_over(args, settings)
    if args.vllm_arguments:
        raise ValueError(f"{args.vllm_arguments[0]!r} is an argument of vLLM's server; give --backend vllm, too")
    try:
        from minicpm.server.uvicorn_server import bind
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("minicpm"):
            raise
        raise MissingExtra("minicpm serve", "serve") from error
    _log_to_stderr()
    # First, because loading may take long: whoever asks meanwhile waits in the backlog.
    with closing(bind(args.host, args.port)) as listener:
        _serve(args, settings, listener)
    return 0


def _serve(args: argparse.Namespace, settings: Settings, listener: socket.socket) -> None:
    from minicpm.engine.service import Service
    from minicpm.server.answers import Serving
    from minicpm.server.model import ServedModel
    from minicpm.server.uvicorn_server import Server

    llm = load_llm(args, max_batch=args.max_batch, kv_cache_bytes=args.kv_cache_size)
    service = Service(llm, queue_limit=args.queue_limit)
    try:
        model = ServedModel.of(llm, args.served_model_name or [_name(args.model, llm.folder)])
        host = f"[{args.host}]" if ":" in args.host else args.host
        url = f"http://{host}:{listener.getsockname()[1]}"
        server = Server(
            Serving(service, model, settings), on_ready=lambda: _say_ready(url, service, model.names[0], args)
        )
        server.run([listener])
    finally:
        service.close(0)


def _hand_over(args: argparse.Namespace, settings: Settings) -> int:
    """Let vLLM's own server serve the model."""
    from minicpm import hub
    from minicpm.cli.progress import TerminalProgress
    from minicpm.server.vllm import VllmServer, serve

    changed = [name for name, default in _OURS_ALONE.items() if getattr(args, name) != default]
    if wish := first_wish(args, (*changed, *IN_PROCESS_OPTIONS)):
        raise ValueError(f"{wish} is for our own server; vLLM's has its own, to be given after --")
    options = engine_options(args, max_batch=args.max_batch, kv_cache_bytes=args.kv_cache_size)
    folder = hub.resolve(args.model, offline=args.offline, progress=TerminalProgress())
    server = VllmServer(
        args.host,
        args.port,
        args.served_model_name or [_name(args.model, folder)],
        options,
        max_batch=args.max_batch,
        api_keys=settings.api_keys,
        cors_origins=settings.cors_origins,
        arguments=args.vllm_arguments,
    )
    if not settings.api_keys and args.host not in _LOOPBACK:
        talk(f"warning: everybody who reaches {args.host} may ask; --api-key-file FILE asks for a key")
    return serve(folder, server)


def _settings(args: argparse.Namespace) -> Settings:
    from minicpm.server.settings import LOOPBACK_NAMES, Settings

    keys = list(args.api_key or [])
    if key := os.environ.get("MINICPM_API_KEY"):
        keys.append(key)
    if args.api_key_file:
        found = [line.strip() for line in read_text(Path(args.api_key_file)).splitlines() if line.strip()]
        if not found:
            raise ValueError(f"{args.api_key_file} holds no key; write one a line")
        keys += found
    hosts: tuple[str, ...] | None = None
    if args.host in _LOOPBACK or args.allowed_host:
        hosts = (*LOOPBACK_NAMES, *(name.lower() for name in args.allowed_host or ()))
    if "*" in (args.allowed_host or ()):
        hosts = None
    return Settings(
        api_keys=tuple(keys),
        allowed_hosts=hosts,
        cors_origins=tuple(args.cors_origin or ()),
        total_timeout_s=args.timeout,
        grace_s=args.grace,
    )


def _name(model: str | None, folder: Path) -> str:
    if model is None:
        return "minicpm-nano"
    return folder.stem if Path(model).exists() else model


def _say_ready(url: str, service: Service, name: str, args: argparse.Namespace) -> None:
    llm, cache_tokens = service.llm, service.statistics().cache_tokens
    talk(
        f"{name} is served at {url}/v1\n"
        f"  model    {llm.folder}, {llm.backend.name} backend, context {llm.context_length:,} tokens\n"
        f"  at once  {llm.options.max_batch} answers, {args.queue_limit} more may wait; keys and values of "
        f"{cache_tokens:,} tokens, {format_bytes(cache_tokens * llm.backend.cache_bytes_per_token)} at most"
    )
    if args.host not in _LOOPBACK and not (args.api_key or args.api_key_file or os.environ.get("MINICPM_API_KEY")):
        talk(f"  warning  everybody who reaches {args.host} may ask; --api-key-file FILE asks for a key")


def _size(text: str) -> int:
    """'2GB' -> 2_000_000_000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500MB or 2GB")
    return int(float(match[1]) * _UNITS[match[2]])


def _log_to_stderr() -> None:
    """One line a record, of ours and of uvicorn's troubles; what came from outside cannot steer the terminal."""

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return printable(super().format(record))

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(asctime)s %(message)s"))
    for name, level in (("minicpm.server", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers = [handler]
        logger.propagate = False
