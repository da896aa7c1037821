"""This package's server and its peers' on the same weights: concurrent streams of an OpenAI-compatible API.

    make peers && python benchmarks/versus_servers.py     # MiniCPM-nano and the true MiniCPM-2B shapes
    python benchmarks/versus_servers.py --models nano --streams 1,8,64 --repeats 5
    python benchmarks/versus_servers.py --models nano --repeats 1 --preparation    # a trial: never shown in a table

Every server is started once and stopped (SIGSTOP) while another answers; those that do not fit into memory together run
in groups, each with ours. Each stream has a different text, so no prompt is another's prefix. Answers have the given
length, or end where the model ends them. Tokens are counted by the server's usage, or else by its events.
Writes results/versus_servers.json and RESULTS.md. About 45 minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from costs import require_idle_machine, write_results
from report import write_report
from versus_peers import GB, LLAMA, MINICPM, ROOT, VLLM, groups, models, talk

from minicpm import native
from minicpm.formats.checkpoint import open_checkpoint
from minicpm.formats.safetensors import SafetensorsWriter
from minicpm.formats.tensor import TensorInfo
from minicpm.hub import embedded
from minicpm.quant.format import IntWeight, read_weight

CONTEXT = 1024
START_TIMEOUT_S, ANSWER_TIMEOUT_S = 600, 900  # vLLM compiles at its first start
LLAMA_SERVER = ROOT / ".venv-llamaserver" / "bin" / "llama-server"
SUBJECTS = ("rabbit", "mouse", "kite", "river", "lantern", "bear", "garden", "boat")


@dataclass(frozen=True)
class Load:
    """The load for the servers of a model."""

    streams: tuple[int, ...]
    tokens: int  # per answer
    context_streams: int  # most concurrent streams


LOADS = {"nano": Load((1, 8, 64), 128, 64), "2b": Load((1, 8), 32, 8)}


@dataclass(frozen=True)
class Program:
    """The command that starts a server of a model, without its port."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    memory_bytes: float  # at its peak, for forming groups
    preset: str | None = None  # of this package
    bits: int = 4


@dataclass
class Server:
    """A server's process, stopped except while it is measured."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    windows: dict[int, list[Window]] = field(default_factory=dict)

    def resume(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)


@dataclass(frozen=True)
class Stream:
    """Seconds from the request to each event with text, and the total tokens."""

    times: tuple[float, ...]
    tokens: int


@dataclass(frozen=True)
class Window:
    tokens_per_s: float
    first_token_s: tuple[float, ...]
    between_tokens_s: tuple[float, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/2b"), help="the 2B model in bf16, made if missing")
    parser.add_argument("--models", default="nano,2b")
    parser.add_argument("--streams", help="instead of the model's own: 1,8,64")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=native.physical_cores())
    parser.add_argument("--preparation", action="store_true", help="only try it: the result enters no document")
    args = parser.parse_args()
    require_idle_machine()
    rows: list[dict[str, object]] = []
    for name in args.models.split(","):
        load = LOADS[name]
        if args.streams:
            streams = tuple(int(part) for part in args.streams.split(","))
            load = Load(streams, load.tokens, max(streams))
        rows += measured(name, load, args)
    note = (
        f"Streams of /v1/completions at once, answers of {LOADS['nano'].tokens} (nano) and {LOADS['2b'].tokens} tokens "
        f"(2b), {args.threads} threads, {args.repeats} windows in alternation, medians; the client runs on the same "
        "cores. The servers of one group alternated, and each ratio is of two figures of its group. The same weights: "
        "INT4 codes here and in llama.cpp; in vLLM their values in float32 (nano), or the bf16 model that they were "
        "rounded from and int4-hf of it (2b). llama-server has a slot for every stream and batches continuously; "
        "llama-cpp-python's server answers one request after the other."
    )
    print("wrote", write_results("versus_servers", rows, note, is_preparation=args.preparation))
    if not args.preparation:
        write_report()


def measured(name: str, load: Load, args: argparse.Namespace) -> list[dict[str, object]]:
    there = []
    for program in programs(name, load, args):
        if Path(program.command[0]).exists():
            there.append(program)
        else:
            talk(f"{program.name} is left out: {program.command[0]} is not there (make peers)")
    rows: list[dict[str, object]] = []
    for number, group in enumerate(groups(there), 1):
        talk(f"{name}, group {number}: {', '.join(program.name for program in group)}")
        servers = measured_group(group, load, args.repeats)
        for streams in load.streams:
            rows += point_rows({"model": name, "group": number, "streams": streams}, servers)
    return rows


def measured_group(group: Sequence[Program], load: Load, repeats: int) -> list[Server]:
    with ExitStack() as stack:
        servers = []
        for program in group:
            try:
                servers.append(stack.enter_context(started(program.name, program.command, program.environment)))
            except RuntimeError as problem:  # the others continue
                talk(str(problem))
                continue
            servers[-1].stop()
        for server in servers:  # work of the first request is not measured
            window(server, 1, 4)
        for repeat in range(repeats):
            for streams in load.streams:
                turn = repeat % len(servers)
                for server in [*servers[turn:], *servers[:turn]]:
                    server.windows.setdefault(streams, []).append(window(server, streams, load.tokens))
        return servers


def programs(name: str, load: Load, args: argparse.Namespace) -> Iterator[Program]:
    """Every server of a model, with its best settings."""
    streams, threads = load.context_streams, str(args.threads)
    of_vllm: list[tuple[str, Path, str, float, int]]  # name, folder, dtype, gigabytes, bits
    if name == "nano":
        work = args.folder.with_name("nano")
        ours, gguf, extra = embedded.folder(), work.with_name("nano.gguf"), 0.5
        of_vllm = [("vllm", nano_granite(work), "float32", 4.5, 32)]
        if not gguf.exists():
            run_minicpm("convert", str(ours), str(gguf), "--to", "gguf")
    else:
        paths = models(args.folder, ["int4-small", "int4-small.gguf", "int4-hf", "granite"])
        ours, gguf, extra = paths["int4-small"], paths["int4-small.gguf"], 6
        of_vllm = [
            ("vllm int4-hf", paths["int4-hf"], "bfloat16", 8.5, 4),
            ("vllm bf16", paths["granite"], "bfloat16", 11.5, 16),
        ]
    serve = ("serve", "-m", str(ours), "--context", str(CONTEXT), "--max-batch", str(streams), "--threads", threads)
    yield Program("minicpm", (*MINICPM, *serve, "--no-lookup"), {}, (0.2 + extra / 3) * GB, preset="int4")
    bound = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
    for note, on, true in (("", "on", "true"), (", plain attention", "off", "false")):
        server = ("--model", str(gguf), "--ctx-size", str(streams * CONTEXT), "--parallel", str(streams))
        server += ("--cont-batching", "--threads", threads, "--threads-batch", threads, "--flash-attn", on)
        yield Program(f"llama-server{note}", (str(LLAMA_SERVER), *server), bound, (0.3 + extra) * GB)
        python = ("-m", "llama_cpp.server", "--model", str(gguf), "--n_ctx", str(CONTEXT), "--n_threads", threads)
        python += ("--n_threads_batch", threads, "--flash_attn", true, "--interrupt_requests", "false")
        yield Program(f"llama-cpp-python{note}", (str(LLAMA), *python), bound, (0.3 + extra * 3 / 4) * GB)
    for program, folder, dtype, gigabytes, bits in of_vllm:
        command = (str(VLLM), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--dtype", dtype)
        command += ("--max-model-len", str(CONTEXT), "--max-num-seqs", str(streams))
        eager = (*command, "--enforce-eager")
        yield Program(program, eager, vllm_environment(threads), gigabytes * GB, bits=bits)
        yield Program(f"{program}, compiled", command, vllm_environment(threads), (gigabytes + 1) * GB, bits=bits)


def vllm_environment(threads: str) -> dict[str, str]:
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "3",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": threads,
    }
    openmp = VLLM.parents[1] / "lib" / "libiomp5.so"
    return environment | ({"LD_PRELOAD": str(openmp)} if openmp.exists() else {})


def nano_granite(work: Path) -> Path:
    """MiniCPM-nano's INT4 weights as float32, in a format that vLLM reads without our code."""
    target = work.with_name("nano-granite")
    if target.exists():
        return target
    source = embedded.folder()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with open_checkpoint(source, allow_quantized=True) as checkpoint:
        infos = [TensorInfo(name, "float32", shape) for name, shape in checkpoint.config.parameter_shapes().items()]
        writer = SafetensorsWriter(work / "model.safetensors", infos)
        for info in infos:
            weight = read_weight(checkpoint, info.name)
            values = weight.dequantize() if isinstance(weight, IntWeight) else weight.float32()
            writer.write(info.name, [memoryview(values.tobytes())])
        writer.close()
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    (work / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}), encoding="utf-8")
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(source / name, work / name)
    run_minicpm("convert", str(work), str(target), "--to", "granite")
    return target


def run_minicpm(*words: str) -> None:
    subprocess.run([*MINICPM, *words], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def started(program: str, command: Sequence[str], environment: dict[str, str]) -> Iterator[Server]:
    """The server once it lists its model."""
    port = free_port()
    log = (ROOT / "runs" / f"server-{program.replace(', ', '-').replace(' ', '-')}.log").open("w")
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    log.close()
    server = Server(program, port, process)
    begin = time.monotonic()
    try:
        while not is_ready(port):
            if process.poll() is not None or time.monotonic() - begin > START_TIMEOUT_S:
                raise RuntimeError(f"{program} did not start; its last words are in {log.name}")
            time.sleep(0.2)
        talk(f"{program} is there after {time.monotonic() - begin:.1f} s")
        yield server
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def is_ready(port: int, path: str = "/v1/models") -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


def window(server: Server, streams: int, tokens: int) -> Window:
    """Run this many streams, started together; the server is stopped again after the last."""
    server.resume()
    try:
        begin = time.perf_counter()
        found = asyncio.run(all_streams(server, streams, tokens))
        wall = time.perf_counter() - begin
    finally:
        server.stop()
    gaps = [late - early for one in found for early, late in pairwise(one.times)]
    speed = sum(one.tokens for one in found) / wall
    if tokens > 4:
        talk(f"  {streams:3} streams  {server.name:34} {speed:9.1f} tokens/s")
    return Window(speed, tuple(one.times[0] for one in found), tuple(gaps))


async def all_streams(server: Server, count: int, tokens: int) -> list[Stream]:
    tasks = [one_stream(server, index, tokens) for index in range(count)]
    return list(await asyncio.wait_for(asyncio.gather(*tasks), ANSWER_TIMEOUT_S))


async def one_stream(server: Server, index: int, tokens: int) -> Stream:
    subject = SUBJECTS[index % len(SUBJECTS)]
    request: dict[str, Any] = {
        "prompt": f"{index}. This is the story of a brave {subject} that went out and found {index} friends.",
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
    }
    if not server.name.startswith("llama-cpp-python"):
        request |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
    if server.name.startswith("vllm"):
        request["model"] = await model_name(server.port)
    body = json.dumps(request).encode()
    begin = time.perf_counter()
    reader, writer = await posted(server.port, body)
    times: list[float] = []
    usage = None
    first = b""
    while line := await reader.readline():
        first = first or line
        if not line.startswith(b"data: {"):
            continue
        event = json.loads(line[6:])
        if event.get("usage"):
            usage = event["usage"]["completion_tokens"]
        if event.get("choices") and event["choices"][0].get("text"):
            times.append(time.perf_counter() - begin)
    writer.close()
    if not times:
        raise RuntimeError(f"{server.name} answered without text: {first.decode(errors='replace').strip()}")
    return Stream(tuple(times), usage or len(times))


async def posted(port: int, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection with a pending completion request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    return reader, writer


async def model_name(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    name: str = json.loads(answer[answer.index(b"\r\n\r\n") + 4 :])["data"][0]["id"]
    return name


def point_rows(point: dict[str, object], servers: Sequence[Server]) -> list[dict[str, object]]:
    """A row for every server of a group: its speed and latencies, and the ratio of ours to it."""
    rows: list[dict[str, object]] = []
    for server in servers:
        windows = server.windows[int(str(point["streams"]))]
        rows.append(
            {
                **point,
                "server": server.name,
                "tokens/s": float(f"{statistics.median(w.tokens_per_s for w in windows):.4g}"),
                "first token, median / p99 (ms)": spread([s for w in windows for s in w.first_token_s], 1e-3),
                "between tokens, median / p99 (ms)": spread([s for w in windows for s in w.between_tokens_s], 1e-3),
            }
        )
    ours = next((row["tokens/s"] for row in rows if row["server"] == "minicpm"), None)
    for row in rows:
        row["minicpm / this server"] = "-" if ours is None else f"{ours / row['tokens/s']:.2f}"
    return rows


def spread(seconds: Sequence[float], unit_s: float) -> str:
    """Median and 99th percentile in a unit of the given number of seconds."""
    if not seconds:
        return "-"
    ordered = sorted(seconds)
    late = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return f"{statistics.median(ordered) / unit_s:.3g} / {late / unit_s:.3g}"


if __name__ == "__main__":
    main()
