"""What llama.cpp makes of a GGUF file; run by the Python of .venv-llamacpp, a JSON request on stdin.

{"file": path, "texts": [...], "ids": [[...], ...], "out": path, "keeps_float32": bool} prints the ids of the texts
and saves the logits (tokens, vocabulary) of every row of ids as arrays `0`, `1`, ... of an .npz file.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "peers"))
from contexts import rows_of
from llamacpp import Context, Model

request = json.load(sys.stdin)
model = Model(request["file"], threads=2)
logits = {}
for index, ids in enumerate(request["ids"]):
    context = Context(model, 512, keeps_float32=request["keeps_float32"])
    context.decode(rows_of(ids, 0, "all"))
    logits[str(index)] = np.array([context.logits(place) for place in range(len(ids))], np.float32)
np.savez(request["out"], **logits)
print(json.dumps([model.tokenize(text) for text in request["texts"]]))
