"""vLLM as a backend of LLM, for GPUs and for many answers at once.

vLLM takes requests and returns tokens, not logits: it schedules, samples and has its own KV cache. So this is a Runtime
(engine/runtime.py) with its own scheduler and scorer, and without steps. Token ids go in and tokens come out; stop
rules, text and counts are ours, as on every backend. This module also decides which folders vLLM reads directly; other
formats are expanded while vLLM loads them. docs/vllm.md lists the differences from our own backends.
"""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import itertools
import logging
import math
import os
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minicpm.engine.backend import cache_bytes_per_token
from minicpm.engine.memory import free_memory_bytes
from minicpm.engine.options import EngineOptions
from minicpm.engine.request import Request
from minicpm.engine.scheduler import Outcome
from minicpm.engine.scoring import Continuation, Loglikelihood
from minicpm.errors import GenerationError, MissingExtra, ModelError, one_line
from minicpm.export.expand import expand, expanded_bytes
from minicpm.formats.checkpoint import Checkpoint
from minicpm.formats.config import DecoderConfig
from minicpm.formats.llama import EMBEDDING, HEAD
from minicpm.hub.cache import home
from minicpm.sampling import SampledToken

_LOGGER = logging.getLogger(__name__)

# Head sizes that vLLM's attention kernels for the CPU support (0.32.0: CPUAttentionBackend).
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
# Environment variables of vLLM that are set unless the user has set them: the engine runs in this process, so a script
# needs no main guard; its log goes to stderr; on the CPU it uses all cores that numactl or taskset allow.
SWITCHES = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
PLUGIN = ("vllm.general_plugins", "minicpm")
# The backend that owns vLLM's process-wide state, which holds one engine at a time.
_holder: weakref.ref[VllmBackend] | None = None


def is_installed() -> bool:
    """Whether `import vllm` finds a package. A mere folder of that name, as in the release's clone, has no origin."""
    spec = importlib.util.find_spec("vllm")
    return spec is not None and spec.origin is not None


def require_vllm() -> None:
    """Raise MissingExtra, which says how to install it, if vLLM is not in this environment."""
    if not is_installed():
        raise MissingExtra("the vllm backend", "vllm")


def require_plugin() -> None:
    """Raise ModelError unless vLLM's own processes find MiniCPM: they use the entry point of the installed package."""
    group, name = PLUGIN
    if not importlib.metadata.entry_points(group=group, name=name):
        raise ModelError(
            "vLLM's processes find MiniCPM through the installed package, but minicpm is only importable here, not "
            "installed; run pip install in its folder"
        )


# --- folders that vLLM reads -------------------------------------------------------------------------------------


def computed_dtype(checkpoint: Checkpoint, dtype: str) -> str:
    """The dtype that 'auto' means: the checkpoint's own."""
    return checkpoint.config.dtype if dtype == "auto" else dtype


def why_not_as_it_is(checkpoint: Checkpoint, dtype: str) -> str | None:
    """The reason why vLLM cannot read a model's files itself and compute in `dtype`; None if it can."""
    if checkpoint.format == "gguf":
        return "it is a GGUF file"
    if checkpoint.format == "vllmcpm":
        return "it is in the form of the 2024 fork (vLLM-CPM)"
    if not checkpoint.packings:
        return None
    if EMBEDDING in checkpoint.packings or HEAD in checkpoint.packings:
        return "its embedding is quantized (the preset int4-hf leaves it in 16 bits)"
    if any(packing.bits != 4 for packing in checkpoint.packings.values()):
        return "its weights have 8 bits in groups"
    shapes = checkpoint.config.parameter_shapes()
    if any(shapes[name][1] % packing.group_size for name, packing in checkpoint.packings.items()):
        return "its groups do not divide its matrices"
    if dtype == "float32":
        return "vLLM's 4-bit kernels compute in 16 bits, not in float32"
    return None


@contextmanager
def readable_folder(checkpoint: Checkpoint, dtype: str) -> Iterator[Path]:
    """The model's own folder, or an expanded copy in `dtype` that is deleted after the block. A copy is logged."""
    reason = why_not_as_it_is(checkpoint, dtype)
    if reason is None:
        yield checkpoint.path
        return
    parent = home() / "vllm"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="expanded-", dir=parent) as name:
        megabytes = expanded_bytes(checkpoint, dtype) / 1e6
        _LOGGER.warning(
            "%s: vLLM cannot read it: %s. It is expanded to %s, %s MB in %s while it is used",
            *(checkpoint.path.name, reason, dtype, f"{megabytes:,.0f}", name),
        )
        expand(checkpoint, Path(name), dtype)
        yield Path(name)


def context_of(config: DecoderConfig, context: int | None) -> int:
    """Longest sequence under vLLM: it does not stretch dynamic NTK beyond the trained positions (docs/vllm.md)."""
    scaling = config.rope_scaling
    longest = config.max_position_embeddings if scaling and scaling.type == "dynamic" else config.context_length
    if context is not None and context > longest:
        raise ValueError(f"context {context} is more than the {longest} tokens vLLM can compute of this model")
    return context or longest


def chat_template_text(checkpoint: Checkpoint) -> str:
    """The model's chat template for vLLM's server, with the `<s>` that our tokenizer puts before a rendered prompt.

    vLLM encodes conversations without special tokens, and no template of 2024 writes `<s>`.
    """
    tokenizer, text = checkpoint.tokenizer(), checkpoint.chat_template().text
    if not tokenizer.adds_bos or tokenizer.bos_token_id is None:
        return text
    bos = tokenizer.id_to_token(tokenizer.bos_token_id) or ""
    return text if bos in text or "bos_token" in text else bos + text


def cpu_arguments(checkpoint: Checkpoint, *, dtype: str, context: int, max_batch: int) -> dict[str, Any]:
    """Engine arguments for a model in vLLM's build for the CPU; none in other builds.

    The KV cache gets room for `max_batch` contexts and one more, as far as memory is free beside the weights. By
    default vLLM takes all free memory. Raises ModelError for a model that its kernels cannot compute.
    """
    if not _is_cpu_build():
        return {}
    _require_cpu_kernels(checkpoint.config)
    arguments: dict[str, Any] = {
        "enforce_eager": True
    }  # its compiler needs a C++ compiler and minutes, for no gain here
    if "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        bytes_per_token = cache_bytes_per_token(checkpoint.config, dtype)
        wanted = (max_batch + 1) * context * bytes_per_token
        free = free_memory_bytes()
        # vLLM counts in blocks of 128 tokens on the CPU, and needs a spare block.
        least = (math.ceil(context / 128) + 2) * 128 * bytes_per_token
        if free is not None:
            wanted = min(wanted, int(0.8 * (free - expanded_bytes(checkpoint, dtype))))
        arguments["kv_cache_memory_bytes"] = max(wanted, least)
    return arguments


# --- the engine --------------------------------------------------------------------------------------------------


class VllmBackend:
    """A model inside vLLM: prompts go in, tokens and the scores of prompts come out.

    vLLM holds one model per process. Loading another one replaces it; the replaced one then raises GenerationError.
    Raises ModelError if vLLM cannot load the model, ValueError for invalid options.
    """

    name = "vllm"
    embedding_size = None

    def __init__(self, checkpoint: Checkpoint, options: EngineOptions):
        config, max_batch = checkpoint.config, options.max_batch
        dtype = computed_dtype(checkpoint, options.dtype)
        vllm_options = options.vllm_options or {}
        self.vocab_size = config.vocab_size
        self.context_length = self.trained_length = context_of(config, options.context)
        self.cache_bytes_per_token = cache_bytes_per_token(config, dtype)
        _make_way()
        arguments: dict[str, Any] = {
            "dtype": dtype,
            "max_model_len": self.context_length,
            "max_num_seqs": max_batch,
            "skip_tokenizer_init": True,
            "disable_log_stats": True,
            "seed": 0,
            **cpu_arguments(checkpoint, dtype=dtype, context=self.context_length, max_batch=max_batch),
        }
        if options.kv_cache_bytes is not None:
            arguments["kv_cache_memory_bytes"] = options.kv_cache_bytes
        if vllm_options.get("tensor_parallel_size", 1) > 1 or vllm_options.get("pipeline_parallel_size", 1) > 1:
            require_plugin()
        with readable_folder(checkpoint, dtype) as folder:
            self._started: Any = _start(str(folder), {**arguments, **vllm_options})
        cache = self._engine.vllm_config.cache_config
        self.cache_tokens = int(cache.num_gpu_blocks or 0) * int(cache.block_size)
        self._names = itertools.count()
        self._inbox: dict[str, list[Any]] = {}  # outputs by request, until its scheduler takes them
        _take_hold(self)

    @property
    def _engine(self) -> Any:
        if self._started is None:
            raise GenerationError(
                "another model was loaded since and replaced this one: vLLM holds one per process; load it again"
            )
        return self._started

    def end(self) -> None:
        """Release all that vLLM holds for the model."""
        self._started = None
        self._inbox.clear()

    def held_tokens(self, planned_tokens: int) -> int:
        return planned_tokens

    # --- requests ------------------------------------------------------------------------------------------------

    def submit(self, prompt_ids: Sequence[int], params: Any) -> str:
        """Pass a prompt to vLLM and return the name of its outputs. Raises GenerationError if vLLM refuses it."""
        from vllm.inputs import TokensPrompt

        engine = self._engine
        name = f"{id(self):x}-{next(self._names)}"
        try:
            engine.add_request(name, TokensPrompt(prompt_token_ids=list(prompt_ids)), params)
        except Exception as error:  # vLLM's errors have no stable common base class
            raise GenerationError(f"vLLM refuses the request: {one_line(str(error))}") from error
        self._inbox[name] = []
        return name

    def withdraw(self, names: Sequence[str]) -> None:
        """Stop requests; their outputs are dropped."""
        going_on = [name for name in names if self._inbox.pop(name, None) is not None]
        if going_on and self._started is not None:
            self._engine.abort_request(going_on)

    def outputs(self, names: Sequence[str]) -> list[tuple[str, Any]]:
        """New outputs of these requests; computes one step if there are none. Outputs of other requests are kept."""
        engine = self._engine
        if not any(self._inbox[name] for name in names):
            for output in engine.step():
                if output.request_id in self._inbox:
                    self._inbox[output.request_id].append(output)
        found = [(name, output) for name in names for output in self._inbox[name]]
        for name, output in found:
            self._inbox[name].clear()
            if output.finished:
                self._inbox.pop(name, None)
        return found

    def prompt_logprobs(self, texts: Sequence[Sequence[int]]) -> list[Any]:
        """Per text (T ids) and position, vLLM's log-probabilities of its token and the likeliest one, by id.

        vLLM computes every text in full: it has no log-probabilities of prompts in its prefix cache.
        """
        from vllm import SamplingParams

        for ids in texts:
            if len(ids) >= self.context_length:
                raise GenerationError(
                    f"the text has {len(ids)} tokens, and vLLM scores at most {self.context_length - 1} of this model"
                )
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=1, detokenize=False)
        names = [self.submit(ids, params) for ids in texts]
        found: dict[str, Any] = {}
        try:
            while len(found) < len(names):
                for name, output in self.outputs([name for name in names if name not in found]):
                    if output.finished:
                        found[name] = output.prompt_logprobs
        finally:
            self.withdraw(names)
        return [found[name] for name in names]

    def forget_prefixes(self) -> None:
        self._engine.reset_prefix_cache()


class VllmRuntime:
    """The Runtime of a model inside vLLM."""

    steps = None
    why_no_steps = (
        "vLLM returns answers and scores, but no logits or hidden states; use the backend native, torch or numpy"
    )

    def __init__(self, backend: VllmBackend):
        self.backend = backend
        self.context_length = backend.context_length
        self.cache_tokens = backend.cache_tokens
        self.scorer = VllmScorer(backend)

    def new_scheduler(self) -> VllmScheduler:
        return VllmScheduler(self.backend)

    def drop_cache(self) -> None:
        self.backend.forget_prefixes()


class VllmScorer:
    """Scores continuations by the log-probabilities that vLLM returns for prompts."""

    def __init__(self, backend: VllmBackend):
        self._backend = backend

    def loglikelihood(self, texts: Sequence[Continuation]) -> list[Loglikelihood]:
        found = self._backend.prompt_logprobs([text.ids for text in texts])
        return [_loglikelihood(text, entries) for text, entries in zip(texts, found)]


def _loglikelihood(text: Continuation, entries: Sequence[Mapping[int, Any]]) -> Loglikelihood:
    chosen = [entries[place][text.ids[place]] for place in range(text.border, len(text.ids))]
    logprob = sum(float(entry.logprob) for entry in chosen)
    return Loglikelihood(logprob, len(chosen), all(entry.rank == 1 for entry in chosen))


class VllmScheduler:
    """Runs requests like the Scheduler of engine/scheduler.py, but vLLM orders and samples them."""

    def __init__(self, backend: VllmBackend):
        self._backend = backend
        self._waiting: list[Request] = []  # not passed to vLLM yet
        self._running: dict[str, Request] = {}  # by vLLM's name

    def add(self, request: Request) -> None:
        if request.is_constrained:
            raise GenerationError(
                "the vllm backend samples by itself and cannot constrain an answer; use the backend native, torch "
                "or numpy, or vLLM's own server (minicpm serve --backend vllm)"
            )
        self._waiting.append(request)

    @property
    def is_busy(self) -> bool:
        return bool(self._waiting or self._running)

    def close(self) -> None:
        """Cancel every request."""
        self._waiting.clear()
        self._drop(list(self._running))

    def step(self) -> list[Outcome]:
        """Compute one step of vLLM; return the outcomes of the requests that got tokens. An error ends its request."""
        outcomes = self._submit()
        if self._running:
            for name, output in self._backend.outputs(list(self._running)):
                outcomes += self._taken(name, self._running[name], output)
        return outcomes

    def _submit(self) -> list[Outcome]:
        failed: list[Outcome] = []
        for request in self._waiting:
            try:
                name = self._backend.submit(request.prompt_ids, _sampling(request))
                request.begin()
                self._running[name] = request
            except GenerationError as error:
                failed.append((request, error))
        self._waiting.clear()
        return failed

    def _taken(self, name: str, request: Request, output: Any) -> list[Outcome]:
        (answer,) = output.outputs
        if not request.new_ids:
            request.cached_tokens = output.num_cached_tokens or 0
        outcomes: list[Outcome] = []
        for place, token_id in enumerate(answer.token_ids):
            entries = answer.logprobs[place] if request.params.logprobs is not None else None
            outcomes.append((request, request.accept(_sampled(token_id, entries, request.params.logprobs))))
            if request.finish_reason is not None:
                break
        if request.finish_reason is not None:
            self._drop([name])
        elif output.finished:
            self._drop([name])
            outcomes.append((request, GenerationError(f"vLLM ended the request: {answer.finish_reason}")))
        return outcomes

    def _drop(self, names: list[str]) -> None:
        for name in names:
            del self._running[name]
        self._backend.withdraw(names)


# --- translation to and from vLLM --------------------------------------------------------------------------------


def _sampling(request: Request) -> Any:
    """vLLM's SamplingParams of a request. Stop strings are matched on our side, as on every backend."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    params = request.params
    return SamplingParams(
        max_tokens=request.max_new_tokens,
        temperature=params.temperature,
        top_p=max(params.top_p, 1e-9),  # vLLM needs more than 0; this keeps only the likeliest token, as our 0 does
        top_k=params.top_k,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=dict(params.logit_bias) if params.logit_bias else None,
        seed=request.seed,
        logprobs=params.logprobs,
        stop_token_ids=sorted(request.final_ids),
        ignore_eos=True,  # stop_token_ids has the ones that count
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _sampled(token_id: int, entries: Mapping[int, Any] | None, count: int | None) -> SampledToken:
    if entries is None or count is None:
        return SampledToken(token_id)
    best = sorted((entry.rank, other) for other, entry in entries.items() if entry.rank <= count)[:count]
    top = tuple((other, float(entries[other].logprob)) for _, other in best)
    return SampledToken(token_id, float(entries[token_id].logprob), top)


def _start(folder: str, arguments: dict[str, Any]) -> Any:
    """vLLM's engine. Its exceptions become one-line errors of this package."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    import minicpm.models  # noqa: F401  (in this process, whether or not the plugin is installed)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations among its own libraries
        import vllm

        try:
            return vllm.LLM(model=folder, **arguments).llm_engine
        except TypeError as error:
            raise ValueError(f"vLLM does not take these options: {one_line(str(error))}") from error
        except Exception as error:
            raise ModelError(f"vLLM cannot load {folder}: {one_line(str(error), 500)}") from error


def _take_hold(backend: VllmBackend) -> None:
    global _holder
    _holder = weakref.ref(backend)


def _make_way() -> None:
    """End the model that vLLM holds, and clean up what it leaves in the process."""
    global _holder
    if _holder is None:
        return
    if (backend := _holder()) is not None:
        backend.end()
    _holder = None
    gc.unfreeze()  # vLLM freezes the objects that exist at its start, so the collector skips them
    gc.collect()
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


def _is_cpu_build() -> bool:
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def _require_cpu_kernels(config: DecoderConfig) -> None:
    if config.head_dim not in CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, CPU_HEAD_SIZES))
        raise ModelError(
            f"vLLM has no attention for heads of {config.head_dim} on the CPU (it has {sizes}); use the backend "
            "native, torch or numpy"
        )
