"""What LLM(backend="vllm") says; run by the Python of .venv-vllm, a JSON list of jobs on stdin, JSON results on stdout.

A job is {"model": path or null, "dtype": ..., "calls": [[method, arguments, options], ...]}. Each call gives its
completions, scores, or {"error": type and text}. {"script": source} is run instead, and gives what it prints. The
models follow one another in this process.
"""

import contextlib
import io
import json
import sys
from dataclasses import asdict

from minicpm import LLM
from minicpm.engine.constraint import Constraint
from minicpm.engine.service import Service


def plain(result):
    if isinstance(result, list):
        return [plain(one) for one in result]
    return asdict(result) if hasattr(result, "__dataclass_fields__") else str(result)


def call(llm, method, arguments, options):
    try:
        if method == "interleaved":
            return interleaved(llm, *arguments, **options)
        if method == "served":
            return plain(Service(llm))
        if method == "replaced":
            LLM(llm.folder, backend="vllm", dtype="float32")
            return plain(llm.chat(*arguments, **options))
        if method == "constrained":
            return plain(llm.chat(*arguments, constraint=Constraint("regex", "a"), **options))
        return plain(getattr(llm, method)(*arguments, **options))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def interleaved(llm, left, first, second, **options):
    """A stream that is left after its first piece, and two that are read in turns."""
    leaving = llm.stream(left, **options)
    next(leaving)
    leaving.close()
    streams = [llm.stream(first, **options), llm.stream(second, **options)]
    texts = ["", ""]
    for pieces in zip(*streams):
        texts = [text + piece.text for text, piece in zip(texts, pieces)]
    for place, stream in enumerate(streams):
        texts[place] += "".join(piece.text for piece in stream)
    return texts


def run(job):
    if "script" in job:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(job["script"], "script", "exec"), {"__name__": "__main__"})
        return printed.getvalue()
    try:
        llm = LLM(job["model"], backend="vllm", dtype=job["dtype"], max_batch=4, **job.get("options", {}))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return [call(llm, *one) for one in job["calls"]]


if __name__ == "__main__":
    print(json.dumps([run(job) for job in json.load(sys.stdin)]))
