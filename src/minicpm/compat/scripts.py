"""A script of 2024 runs as it stands, in this process.

The script sees plain Python: its own sys.argv, `__main__`, tracebacks and exit codes. Around it, `from_pretrained`
finds our classes instead of code in the model's folder (which never runs, whatever the script trusts), a name may end
in '/', and on a machine without CUDA everything sent to "cuda" stays on the CPU, said once on stderr. An error of this
package that the script does not catch is printed as its one sentence.
"""

from __future__ import annotations

import builtins
import functools
import os
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import torch
import transformers.dynamic_module_utils
import transformers.generation.utils
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _BaseAutoModelClass

import minicpm.models  # noqa: F401 (registers the classes)
from minicpm import hub
from minicpm.cli.output import one_sentence
from minicpm.cli.progress import TerminalProgress
from minicpm.compat import gradio_2024
from minicpm.errors import HubError, MiniCPMError, ModelError
from minicpm.formats.support import require_supported
from minicpm.models.autoclasses import wrap_classmethod

ExceptHook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]

# Functions of torch that make a tensor where `device` says.
FACTORIES = (
    *("arange", "as_tensor", "empty", "empty_like", "eye", "full", "full_like", "linspace", "ones", "ones_like"),
    *("rand", "rand_like", "randint", "randn", "randn_like", "randperm", "tensor", "zeros", "zeros_like"),
)


def main(arguments: list[str]) -> int:
    """Run the script `arguments[0]` with the rest as its arguments."""
    teach_transformers()
    gradio_2024.teach_when_imported()
    if not torch.cuda.is_available():
        keep_on_cpu()
    return run_script(arguments[0], arguments)


def run_script(path: str, argv: list[str]) -> int:
    """Execute the file as `python path argv[1:]` would; what it raises passes through, without our frames."""
    source = Path(path).read_bytes()
    script = ModuleType("__main__")
    script.__dict__.update(
        __file__=path, __builtins__=builtins, __cached__=None, __loader__=SourceFileLoader("__main__", path)
    )
    sys.modules["__main__"] = script
    sys.argv = argv
    if not sys.flags.safe_path:
        sys.path[0] = str(Path(path).resolve().parent)
    sys.excepthook = _without_our_frames(sys.excepthook)
    exec(compile(source, path, "exec", dont_inherit=True), script.__dict__)
    return 0


def _without_our_frames(hook: ExceptHook) -> ExceptHook:
    def shown(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        rest = trace
        while rest is not None and rest.tb_frame.f_code is not run_script.__code__:
            rest = rest.tb_next
        if rest is not None:
            trace = rest.tb_next
        if isinstance(error, MiniCPMError) and os.environ.get("MINICPM_TRACEBACK", "0") == "0":
            print(f"minicpm.compat: {one_sentence(error)}", file=sys.stderr)
        else:
            hook(kind, error.with_traceback(trace), trace)

    return shown


def teach_transformers() -> None:
    """Names with a trailing slash, no code from model folders."""
    # transformers gives each Auto class its own copy of from_pretrained.
    auto_models = [
        c for c in vars(modeling_auto).values() if isinstance(c, type) and issubclass(c, _BaseAutoModelClass)
    ]
    for owner in (AutoConfig, AutoTokenizer, PreTrainedModel, *auto_models):
        wrap_classmethod(owner, "from_pretrained", _from_pretrained)
    for module in (transformers.dynamic_module_utils, transformers.generation.utils):
        module.get_cached_module_file = module.get_class_in_module = _refuse_code


def _from_pretrained(original: Any, cls: type, name: Any, *args: Any, **kwargs: Any) -> Any:
    if "torch_dtype" in kwargs:
        kwargs.setdefault("dtype", kwargs.pop("torch_dtype"))
    return original(cls, model_name(name), *args, **kwargs)


def model_name(name: str | os.PathLike[str]) -> str:
    """What transformers shall open: a folder as it is, one of the release's text models as our hub has or fetches it.

    Of any other name only the trailing slash goes, which hubs do not know.
    """
    text = os.fspath(name)
    if Path(text).exists():
        return text
    text = text.rstrip("/")
    if _is_release_decoder(text):
        return str(hub.resolve(text, progress=TerminalProgress(), accept=require_supported))
    return text


def _is_release_decoder(name: str) -> bool:
    try:
        reference = hub.parse_name(name)
    except (HubError, ValueError):
        return False
    if reference.known is None:
        return False
    if reference.known.unsupported:
        raise ModelError(f"{reference} {reference.known.unsupported}")
    return not reference.repo_id.endswith("llama-format")


def _refuse_code(*args: Any, **kwargs: Any) -> Any:
    raise ModelError(
        "this model brings its own code, which minicpm.compat never runs; only the models that minicpm knows work here"
    )


class _Notice:
    """One line on stderr, the first time only."""

    def __init__(self, text: str):
        self.text: str | None = text

    def __call__(self) -> None:
        if self.text is not None:
            text, self.text = self.text, None
            print(f"minicpm.compat: {text}", file=sys.stderr)


no_cuda = _Notice("this machine has no CUDA device, so the script runs on the CPU")
no_flash = _Notice("flash attention needs a CUDA device, so torch's own attention is used")


def on_cpu(device: Any) -> Any:
    """`device` as torch takes it, the CPU in place of any CUDA device."""
    if isinstance(device, str | torch.device) and str(device).split(":")[0] == "cuda":
        no_cuda()
        return torch.device("cpu")
    if isinstance(device, int) and not isinstance(device, bool):  # torch reads a bare number as cuda:N
        no_cuda()
        return torch.device("cpu")
    return device


def keep_on_cpu() -> None:
    """Make everything that names CUDA mean the CPU, in this process."""
    for owner in (torch.Tensor, torch.nn.Module):
        owner.to = _device_argument(owner.to)
        owner.cuda = _stay
    for name in FACTORIES:
        setattr(torch, name, _device_argument(getattr(torch, name), only_keyword=True))
    for name in ("synchronize", "set_device"):
        setattr(torch.cuda, name, lambda *args, **kwargs: no_cuda())
    torch.set_default_device = _device_argument(torch.set_default_device, position=0)
    wrap_classmethod(PreTrainedModel, "from_pretrained", _loaded_on_cpu)


def _device_argument(call: Any, *, position: int = 1, only_keyword: bool = False) -> Any:
    """`call` with its device, by keyword or as the argument at `position`, moved to the CPU."""

    @functools.wraps(call)
    def moved(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = on_cpu(kwargs["device"])
        elif len(args) > position and not only_keyword:
            args = (*args[:position], on_cpu(args[position]), *args[position + 1 :])
        return call(*args, **kwargs)

    return moved


def _stay(self: Any, *args: Any, **kwargs: Any) -> Any:
    no_cuda()
    return self


def _loaded_on_cpu(original: Any, cls: type, *args: Any, **kwargs: Any) -> Any:
    device_map = kwargs.get("device_map")
    if isinstance(device_map, dict):
        kwargs["device_map"] = {part: on_cpu(device) for part, device in device_map.items()}
    elif device_map is not None:
        kwargs["device_map"] = on_cpu(device_map)
    if kwargs.get("attn_implementation") == "flash_attention_2":
        no_flash()
        kwargs["attn_implementation"] = "sdpa"
    return original(cls, *args, **kwargs)
