"""What the server adds to the engine: MiniCPM-nano behind `minicpm serve`, and the Service alone, in turns.

python benchmarks/serving.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from costs import require_idle_machine, write_results
from report import write_report

from minicpm import LLM, SamplingParams
from minicpm.engine.service import Service

QUESTION = "Tell me a story about a brave rabbit."
TOKENS = 400
STREAMS = (1, 8)
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    require_idle_machine()
    rows = [{"what": "start to /health", **start(args.repeats)}]
    service = Service(LLM(lookup="off"))
    with served() as (port, pid):
        for streams in STREAMS:
            name = f"a token of {streams} stream{'s' * (streams > 1)}"
            rows.append({"what": name, **compared(service, port, pid, streams, args.repeats)})
        rows.append({"what": "after them", "rss_mb": round(rss_bytes(pid) / 1e6, 1)})
    service.close(0)
    note = f"MiniCPM-nano, int4, native; {TOKENS} tokens a stream; medians, CPU of all threads of the process."
    print(write_results("serving", rows, note))
    write_report()


@contextmanager
def served() -> Iterator[tuple[int, int]]:
    """Port and process id of a server that answers."""
    command = [sys.executable, "-m", "minicpm", "serve", "--port", "0", "--no-lookup"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"is served at http://127.0.0.1:(\d+)", line):
                break
        else:
            raise RuntimeError("the server did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        try:
            yield int(found[1]), process.pid
        finally:
            process.kill()


def start(repeats: int) -> dict[str, object]:
    seconds, memory = [], []
    for _ in range(repeats):
        begin = time.perf_counter()
        with served() as (port, pid):
            asyncio.run(asked(port, "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
            seconds.append(time.perf_counter() - begin)
            memory.append(rss_bytes(pid))
    return {"start_s": round(statistics.median(seconds), 3), "rss_mb": round(statistics.median(memory) / 1e6, 1)}


def compared(service: Service, port: int, pid: int, streams: int, repeats: int) -> dict[str, object]:
    """Wall-clock and CPU of a token, through the server and without it."""
    found: dict[str, list[tuple[float, float]]] = {"service": [], "server": []}
    for _ in range(repeats + 1):
        found["service"].append(timed(os.getpid(), streams, lambda: answer(service, streams)))
        found["server"].append(timed(pid, streams, lambda: asyncio.run(answer_over_http(port, streams))))
    walls, cpus = ({name: statistics.median(t[i] for t in times[1:]) for name, times in found.items()} for i in (0, 1))
    return {
        "service_us": round(walls["service"]),
        "server_us": round(walls["server"]),
        "service_cpu_us": round(cpus["service"]),
        "server_cpu_us": round(cpus["server"]),
        "tokens_per_s": round(1e6 / walls["server"]),
    }


def timed(pid: int, streams: int, work: Callable[[], object]) -> tuple[float, float]:
    """Microseconds a token takes, and of the process's CPU."""
    cpu, begin = cpu_s(pid), time.perf_counter()
    work()
    return tuple(1e6 * s / (streams * TOKENS) for s in (time.perf_counter() - begin, cpu_s(pid) - cpu))  # type: ignore


def answer(service: Service, streams: int) -> None:
    over = threading.Semaphore(0)
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    prompt = service.llm.template.render([{"role": "user", "content": QUESTION}])

    def hear(piece: object) -> None:
        if piece.completion is not None:  # type: ignore[attr-defined]
            over.release()

    for _ in range(streams):
        service.submit(prompt, params, on_piece=hear, on_error=print, is_chat=True)
    for _ in range(streams):
        over.acquire()


async def answer_over_http(port: int, streams: int) -> None:
    body = json.dumps(
        {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": TOKENS,
         "ignore_eos": True, "stream": True}
    )  # fmt: skip
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    for answer in await asyncio.gather(*(asked(port, request) for _ in range(streams))):
        if b"data: [DONE]" not in answer:
            raise RuntimeError("a stream ended without [DONE]")


async def asked(port: int, request: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode())
    answer = await reader.read()
    writer.close()
    return answer


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
