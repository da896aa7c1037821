"""Runs a stranger's chat template in a helper process that can neither run away nor grow without bounds.

jinja2's own sandbox keeps a template away from Python, but not from `'a' * 2000000000` or nested loops; those end
with the limits that sandbox_child.py puts on itself before it reads the template.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

from minicpm.errors import FormatError, one_line

CPU_S = 2  # start-up and a long conversation take 0.3
WALL_S = 10.0  # only a machine too busy to give two seconds of CPU gets here
ADDRESS_SPACE_BYTES = 512 << 20
OUTPUT_CHARACTERS = 8 << 20

_CHILD = Path(__file__).with_name("child.py")


def render_foreign(template: str, variables: dict[str, object], source: Path) -> str:
    """Render a jinja2 chat template with the `variables`. Raises FormatError naming `source` if it fails."""
    if find_spec("resource") is None:
        raise FormatError(source, "a template that is not MiniCPM's own needs limits of a process, which Windows lacks")
    request = {
        "template": template,
        "variables": variables,
        "import_paths": _paths_of("jinja2", "markupsafe"),
        "cpu_s": CPU_S,
        "address_space_bytes": ADDRESS_SPACE_BYTES,
        "output_characters": OUTPUT_CHARACTERS,
    }
    # -I: nothing from the environment or the current folder; -S: no site-packages.
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"LC_ALL": "C.UTF-8"},
        cwd="/",
        close_fds=True,
    )
    alarm = threading.Timer(WALL_S, process.kill)
    alarm.start()
    try:
        answer = _converse(process, json.dumps(request).encode())
    finally:
        process.kill()
        alarm.cancel()
        process.wait()
    return _read_answer(answer, source)


def _converse(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    assert process.stdin is not None and process.stdout is not None
    with process.stdout as stdout:
        try:
            with process.stdin as stdin:
                stdin.write(request)
        except BrokenPipeError:
            pass  # it died early; that it gives no answer says so
        # The child limits its own output; this bound holds even if a template took it over. JSON escapes in 6 bytes.
        return stdout.read(6 * OUTPUT_CHARACTERS + 1024)


def _paths_of(*modules: str) -> list[str]:
    """Folders to import the modules from: the child sees no site-packages."""
    folders = []
    for module in modules:
        spec = find_spec(module)
        assert spec is not None and spec.origin is not None
        folders.append(str(Path(spec.origin).parents[1]))
    return list(dict.fromkeys(folders))


def _read_answer(answer: bytes, source: Path) -> str:
    if not answer:
        raise FormatError(source, f"the chat template was stopped: it needs more than {CPU_S} s of computing")
    try:
        fields = json.loads(answer)
        prompt = fields.get("prompt")
        problem = fields.get("error", "its output is no text")
    except (ValueError, AttributeError, RecursionError):
        prompt, problem = None, "its output is no text"
    if not isinstance(prompt, str):
        raise FormatError(source, f"the chat template failed: {one_line(str(problem), 300)}")
    return prompt
