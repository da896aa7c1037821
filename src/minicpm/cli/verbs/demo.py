"""`minicpm demo`: a page in the browser to talk with a model, on this machine or on a server."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from minicpm.cli.arguments import (
    IN_PROCESS_OPTIONS,
    add_engine_arguments,
    count,
    engine_options,
    first_wish,
    load_llm,
)
from minicpm.cli.listening import add_address_arguments, add_allowed_host_argument, allowed_hosts, is_open
from minicpm.cli.models import resolve_model, shown_name
from minicpm.cli.output import talk
from minicpm.errors import missing_extra
from minicpm.server.addresses import bind, host_in_url

if TYPE_CHECKING:
    from minicpm.demo.source import Source

_PARALLEL = 4
# More options that have no meaning for a server at --url.
_LOADING = ("backend", "dtype", "context", "tensor_parallel_size", "offline")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Talk with a model in the browser; many people can use the page at once. The model runs in this process, with "
        "--backend vllm in a vLLM that is started for it, or at --url on any server with OpenAI's protocol."
    )
    add_address_arguments(parser, default_port=7860)
    add_allowed_host_argument(parser, "a host name that requests may use, such as that of a proxy in front of the demo")
    parser.add_argument(
        "--parallel", type=count, default=_PARALLEL, metavar="N", help=f"answers at once (default: {_PARALLEL})"
    )
    parser.add_argument("--url", help="a running server, e.g. http://127.0.0.1:8000/v1; -m names one of its models")
    parser.add_argument("--api-key", metavar="KEY", help="key for that server (default: $OPENAI_API_KEY)")
    add_engine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    _check_combination(args)
    with missing_extra("the web demo", "demo"):
        from minicpm.demo.serving import serve
    with bind(args.host, args.port) as listener, ExitStack() as stack:
        source = _source(args, stack)
        host, number = listener.getsockname()[:2]
        if is_open(args):
            talk(f"Everyone who can reach {args.host} can use this page; it has no password.")
        url = f"http://{host_in_url(host)}:{number}/"
        pages = tuple(name for name in args.allowed_host or () if name != "*")
        serve(source, listener, hosts=allowed_hosts(args), pages=pages, on_ready=lambda: talk(url))
    return 0


def _check_combination(args: argparse.Namespace) -> None:
    if args.url is None and args.api_key is not None:
        raise ValueError("--api-key is for the server at --url; give --url, too")
    if args.url is not None:
        _refuse(args, (*IN_PROCESS_OPTIONS, *_LOADING), "the server at --url")
    elif args.backend == "vllm":
        _refuse(args, IN_PROCESS_OPTIONS, "vLLM")


def _refuse(args: argparse.Namespace, names: Sequence[str], whose: str) -> None:
    if wish := first_wish(args, names):
        raise ValueError(f"{wish} is for a model in this process, not for {whose}; leave it out")


def _source(args: argparse.Namespace, stack: ExitStack) -> Source:
    if args.url is not None:
        from minicpm.demo.remote import RemoteSource

        return RemoteSource(args.url, args.api_key or os.environ.get("OPENAI_API_KEY"), args.model)
    if args.backend == "vllm":
        return _vllm_source(args, stack)
    from minicpm.demo.local import LocalSource
    from minicpm.engine.service import Service

    llm = load_llm(args, max_batch=args.parallel)
    service = Service(llm)
    stack.callback(service.close, 0.0)
    return LocalSource(llm, service, shown_name(args.model, llm.folder))


def _vllm_source(args: argparse.Namespace, stack: ExitStack) -> Source:
    from minicpm.demo.vllm import running_vllm

    options = engine_options(args, max_batch=args.parallel)
    folder = resolve_model(args, args.model)
    # vLLM must not outlive this process, not even while it starts.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    talk("Starting vLLM, which takes a minute or more ...")
    return stack.enter_context(running_vllm(folder, shown_name(args.model, folder), options))
