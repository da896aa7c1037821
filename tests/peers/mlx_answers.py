"""What mlx-lm makes of a folder; run by the Python of .venv-mlx, a JSON request on stdin.

{"folder", "ids", "quantized"} prints nats of the ids behind the first one: {"nats"}. Where `quantized` is a path, the
folder is first converted to one of MLX's own there (4 bits, groups of 32), and that is read.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx_lm import convert
from mlx_lm.utils import load_model

request = json.load(sys.stdin)
folder = request["folder"]
if request["quantized"]:
    convert(folder, request["quantized"], quantize=True, q_group_size=32, q_bits=4)
    folder = request["quantized"]
model, _ = load_model(Path(folder))
ids = mx.array([request["ids"]])
logits = model(ids)[0, :-1].astype(mx.float32)
logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
nats = -mx.take_along_axis(logits, ids[0, 1:, None], axis=-1).mean()
print(json.dumps({"nats": nats.item()}))
