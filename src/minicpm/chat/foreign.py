"""Renders chat templates that are not MiniCPM's own, in the sandbox."""

from __future__ import annotations

from pathlib import Path

from minicpm.errors import FormatError, one_line
from minicpm.sandbox.process import Failed, Limits, Stopped, has_limits, run_job

LIMITS = Limits(
    cpu_s=2,  # start-up and a long conversation take 0.3 s
    wall_s=10.0,  # reached only on a machine that is too busy to give it two seconds of CPU time
    address_space_bytes=512 << 20,
    output_characters=8 << 20,
)

_JOB = Path(__file__).with_name("template_job.py")


def render_foreign(template: str, variables: dict[str, object], source: Path) -> str:
    """Render a jinja2 chat template with the `variables`. Raises FormatError naming `source` if it fails."""
    if not has_limits():
        raise FormatError(source, "a template that is not MiniCPM's own needs process limits, which Windows lacks")
    request = {"template": template, "variables": variables}
    try:
        return run_job(_JOB, request, LIMITS, modules=("jinja2", "markupsafe"))
    except Stopped:
        problem = f"the chat template was stopped: it needs more than {LIMITS.cpu_s} s of CPU time"
    except Failed as error:
        problem = f"the chat template failed: {one_line(str(error), 300)}"
    raise FormatError(source, problem)
