"""What answers over HTTP on the true MiniCPM-2B shapes: `serve`, `demo` and `run`, on our engine and on vLLM.

    make vllm && python benchmarks/true_shapes_served.py     # needs chromium for the demo's page

Every program is started as its users start it, asked for answers (the demo by a browser), and ended. Memory is the
sum of its processes' shares (PSS). Writes benchmarks/results/true_shapes_served.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from costs import require_idle_machine, write_results
from report import write_report
from versus_peers import MINICPM, VLLM, models, talk
from versus_servers import free_port, is_ready

TOKENS = 32
QUESTION = "Which city is the capital of China?"
START_S, ANSWER_S, END_S, SAMPLE_S = 600, 600, 60, 0.25
VLLM_PROGRAM = [str(VLLM), "-P", "-m", "minicpm"]


class Memory:
    """The largest sum of the shares of a process and its descendants."""

    def __init__(self, pid: int):
        self.peak_bytes = 0
        self._pid, self._is_over = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._is_over.set()
        self._thread.join()
        return self.peak_bytes

    def _watch(self) -> None:
        while not self._is_over.wait(SAMPLE_S):
            self.peak_bytes = max(self.peak_bytes, sum(pss_bytes(pid) for pid in family(self._pid)))


def family(root: int) -> list[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # ended meanwhile
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/2b"), help="the 2B model in bf16, made if missing")
    args = parser.parse_args()
    require_idle_machine()
    paths = models(args.folder, ["int4"])
    int4, bf16 = ["-m", str(paths["int4"])], ["-m", str(paths["bf16"])]
    on_vllm = ["--backend", "vllm"]
    room = ["--context", "1024"]
    rows = [
        {"what": "serve, int4", **served([*MINICPM, "serve", *int4])},
        {"what": "serve, bf16", **served([*MINICPM, "serve", *bf16])},
        {"what": "serve, bf16 on vLLM", **served([*VLLM_PROGRAM, "serve", *bf16, *on_vllm, *room])},
        {"what": "demo, int4", **demonstrated([*MINICPM, "demo", *int4])},
        {"what": "demo, bf16", **demonstrated([*MINICPM, "demo", *bf16])},
        {"what": "demo, bf16 on vLLM", **demonstrated([*MINICPM, "demo", *bf16, *on_vllm, *room])},
        {"what": "run, 8 prompts, bf16 on vLLM", **run_batch([*VLLM_PROGRAM, "run", *bf16, *on_vllm, *room])},
    ]
    note = (
        f"MiniCPM-2B shapes, random weights, the folder as published in 2024; two answers of {TOKENS} tokens, in the "
        "demo the second one of a conversation; vLLM with contexts of 1,024 tokens."
    )
    print("wrote", write_results("true_shapes_served", rows, note))
    write_report()


@contextmanager
def started(command: Sequence[str]) -> Iterator[tuple[int, float, Memory]]:
    """Its port, the seconds until it answered, and its memory; it is ended as a user ends it."""
    port = free_port()
    environment = {**os.environ, "PATH": f"{VLLM.parent}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.TemporaryFile("w+") as log:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
        memory = Memory(process.pid)
        path = "/" if "demo" in command else "/v1/models"
        try:
            while not is_ready(port, path):
                if process.poll() is not None or time.perf_counter() - begin > START_S:
                    log.seek(0)
                    raise RuntimeError(f"{' '.join(command)} did not start: {log.read()[-2000:]}")
                time.sleep(0.1)
            yield port, time.perf_counter() - begin, memory
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                for pid in family(process.pid):
                    os.kill(pid, signal.SIGKILL)
                raise RuntimeError(f"{' '.join(command)} did not end within {END_S} s of Ctrl-C") from None


def served(command: Sequence[str]) -> dict[str, object]:
    with started(command) as (port, start_s, memory):
        name = answered(port, "/v1/models")["data"][0]["id"]
        body = {"model": name, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": TOKENS}
        seconds = []
        for _ in range(2):
            begin = time.perf_counter()
            usage = answered(port, "/v1/chat/completions", {**body, "ignore_eos": True})["usage"]
            seconds.append(time.perf_counter() - begin)
            assert usage["completion_tokens"] == TOKENS, usage
        return told(command, start_s, seconds, memory)


def demonstrated(command: Sequence[str]) -> dict[str, object]:
    from playwright.sync_api import expect, sync_playwright

    seconds = []
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with started(command) as (port, start_s, memory), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.get_by_label("number input for Longest answer (tokens)").fill(str(TOKENS))
        for number in range(2):
            page.locator("#question textarea").fill(QUESTION)
            begin = time.perf_counter()
            page.locator("#submit").click()
            expect(page.locator("#stop")).to_be_visible(timeout=1000 * ANSWER_S)
            expect(page.locator("#submit")).to_be_visible(timeout=1000 * ANSWER_S)
            seconds.append(time.perf_counter() - begin)
            talk(f"  answer {number + 1}: {page.locator('#note').inner_text().strip()}")
        browser.close()
        return told(command, start_s, seconds, memory)


def run_batch(command: Sequence[str]) -> dict[str, object]:
    begin = time.perf_counter()
    prompts = [f"Question number {number}: why?" for number in range(8)]
    command = [*command, "--json", "--batch", "8", "--max-tokens", str(TOKENS), *prompts]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    memory = Memory(process.pid)
    out, _ = process.communicate(timeout=START_S + ANSWER_S)
    answers = [json.loads(line) for line in out.splitlines()]
    assert process.returncode == 0 and len(answers) == len(prompts), out
    slowest = max(answer["timings"]["total_s"] for answer in answers)
    wall = time.perf_counter() - begin
    return told(command, wall - slowest, [slowest], memory)


def told(command: Sequence[str], start_s: float, seconds: Sequence[float], memory: Memory) -> dict[str, object]:
    row: dict[str, object] = {
        "start_s": round(start_s, 1),
        "first_answer_s": round(seconds[0], 1),
        "second_answer_s": round(seconds[1], 1) if len(seconds) > 1 else "-",
        "peak_memory_bytes": memory.stop(),
    }
    talk(f"{' '.join(command[-6:])}: {row}")
    return row


def answered(port: int, path: str, body: dict[str, object] | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"} if data else {}
    )
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
        return json.loads(answer.read())


if __name__ == "__main__":
    main()
