"""A sandbox job: render an untrusted chat template. It runs in a child without this package (sandbox/child.py).

jinja2's own sandbox denies a template access to Python, but allows `'a' * 2000000000` and nested loops; the child's
limits stop those.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

environment: Any = None


def prepare() -> None:
    """Create the part of transformers' environment for chat templates that a prompt needs."""
    global environment
    # Import now what jinja2 imports lazily: no file can be opened later.
    import datetime

    import jinja2.constants
    import jinja2.debug
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """{% generation %} ... {% endgeneration %}, which marks for transformers what an assistant says."""

        tags = {"generation"}  # noqa: RUF012 (as the base class has it)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def tojson(
        value: object,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def strftime_now(format: str) -> str:
        return datetime.datetime.now().strftime(format)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    environment.from_string("{{ 'a literal' }}").render()  # loads the codec of string literals


def work(request: dict[str, Any]) -> Iterator[str]:
    """The prompt, piece by piece."""
    pieces: Iterator[str] = environment.from_string(request["template"]).generate(**request["variables"])
    return pieces
