"""What a user of llama.cpp gets of a GGUF file; run by the Python of .venv-llamacpp, a JSON request on stdin.

{"file": path, "texts": [...], "question": text} prints the ids of every text, nats of the first text's tokens behind
its first one, and the greedy answer to the question by the file's own template: {"ids", "nats", "answer", "finish"}.
A file that llama.cpp refuses, or cannot split texts with, gives {"error"}.
"""

import json
import sys

import numpy as np
from llama_cpp import Llama

request = json.load(sys.stdin)
try:
    llm = Llama(request["file"], n_ctx=512, n_threads=2, logits_all=True, verbose=False, seed=0)
    ids = [llm.tokenize(text.encode(), add_bos=True, special=True) for text in request["texts"]]
    llm.eval(ids[0])
    scores = np.array(llm.scores[: len(ids[0]) - 1], np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    nats = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(len(scores)), ids[0][1:]]
    llm.reset()
    messages = [{"role": "user", "content": request["question"]}]
    answer = llm.create_chat_completion(messages, temperature=0, max_tokens=24)["choices"][0]
    told = {
        "ids": ids,
        "nats": nats.mean(),
        "answer": answer["message"]["content"],
        "finish": answer["finish_reason"],
    }
except (ValueError, RuntimeError, AssertionError) as error:
    told = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps(told))
