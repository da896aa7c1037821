"""The peer of `minicpm run`: transformers from a folder to greedy text, in its own process.

    python benchmarks/peers/transformers_generate.py FOLDER TOKENS PROMPT

FOLDER is the model in Granite's format, which transformers reads without our code.
"""

import json
import sys
import time

start = time.perf_counter()
import torch  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: E402

folder, tokens, prompt = sys.argv[1], int(sys.argv[2]), sys.argv[3]
tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json")
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
loaded = time.perf_counter()
inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)


def generate(count: int) -> float:
    begin = time.perf_counter()
    with torch.inference_mode():
        model.generate(**inputs, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=2)
    return time.perf_counter() - begin


generate(1)
if tokens > 1:
    many_s, one_s = generate(tokens), generate(1)
    print(json.dumps({"load_s": loaded - start, "decode_tokens_per_s": (tokens - 1) / (many_s - one_s)}))
