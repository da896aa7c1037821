"""The ids that llama.cpp gives texts; run by the Python of .venv-llamacpp, a JSON request on stdin.

{"file": path, "texts": [...]} prints the ids of every text, or {"error"} for a file that it refuses. Only the
vocabulary is loaded.
"""

import ctypes
import json
import sys

import llama_cpp as ll

request = json.load(sys.stdin)
quiet = ll.llama_log_callback(lambda level, text, data: None)
ll.llama_log_set(quiet, ctypes.c_void_p(0))
params = ll.llama_model_default_params()
params.vocab_only = True
model = ll.llama_model_load_from_file(request["file"].encode(), params)
if not model:
    print(json.dumps({"error": "llama.cpp could not load it"}))
    sys.exit()
vocab = ll.llama_model_get_vocab(model)


def tokenize(text: str) -> list[int]:
    data = text.encode()
    ids = (ll.llama_token * (len(data) + 16))()
    count = ll.llama_tokenize(vocab, data, len(data), ids, len(ids), True, True)
    return list(ids[:count])


print(json.dumps([tokenize(text) for text in request["texts"]]))
