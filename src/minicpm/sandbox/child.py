"""The helper process of sandbox.py: reads one JSON request on stdin, writes one JSON answer on stdout.

A program of its own: it is started without site-packages and must not import this package.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any


def main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    sys.path += request["import_paths"]
    environment = sandboxed_environment()
    limit_resources(request["cpu_s"], request["address_space_bytes"])
    try:
        answer = {"prompt": render(environment, request)}
    except MemoryError:
        answer = {"error": f"it needs more than {request['address_space_bytes'] >> 20} MB"}
    except RecursionError:
        answer = {"error": "it is nested too deeply"}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    sys.stdout.buffer.write(json.dumps(answer).encode())


def sandboxed_environment() -> Any:
    """The environment that transformers gives chat templates, as far as a prompt needs it."""
    # All that jinja2 imports when it is used must be here already: no file can be opened later.
    import datetime

    import jinja2.constants
    import jinja2.debug
    import jinja2.ext
    import jinja2.sandbox

    def tojson(value: object, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(format: str) -> str:
        return datetime.datetime.now().strftime(format)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    environment.from_string("{{ 'a literal' }}").render()  # loads the codec of string literals
    return environment


def render(environment: Any, request: dict[str, Any]) -> str:
    """Piece by piece, so that too long a text is noticed before it is whole."""
    limit = request["output_characters"]
    pieces = []
    length = 0
    for piece in environment.from_string(request["template"]).generate(**request["variables"]):
        pieces.append(piece)
        length += len(piece)
        if length > limit:
            raise ValueError(f"its prompt has more than {limit:,} characters")
    return "".join(pieces)


def limit_resources(cpu_s: int, address_space_bytes: int) -> None:
    """From here on the process cannot use more than this, write a file, open another one or start a program."""
    for name, limit in {
        "RLIMIT_CPU": cpu_s,
        "RLIMIT_AS": address_space_bytes,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NOFILE": 3,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
    }.items():
        resource.setrlimit(getattr(resource, name), (limit, limit))


main()
