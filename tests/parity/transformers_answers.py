"""What a user of transformers gets of a folder, one JSON request a line on stdin, one JSON answer a line on stdout.

With the argument `ours` minicpm.models is imported first, as the documents say; without it transformers is as it comes.
{"folder", "texts", "question", "trusts"} gives the ids of the texts, nats of the first one's tokens behind its first,
and the greedy answer to the question by the folder's template: {"ids", "nats", "answer"}, or {"error"}.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

if "ours" in sys.argv:
    import minicpm.models  # noqa: F401


def told(folder: str, texts: list[str], question: str, trusts: bool) -> dict[str, object]:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusts)
    ids = [tokenizer(text).input_ids for text in texts]
    torch.manual_seed(0)  # of weights that are made up
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trusts).eval()
    row = torch.tensor([ids[0]])
    with torch.no_grad():
        nats = float(torch.nn.functional.cross_entropy(model(row).logits[0, :-1], row[0, 1:]))
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        row = tokenizer(prompt, return_tensors="pt").input_ids
        made = model.generate(row, do_sample=False, max_new_tokens=24)
    return {"ids": ids, "nats": nats, "answer": tokenizer.decode(made[0, row.shape[1] :])}


for line in sys.stdin:
    try:
        answer = told(**json.loads(line))
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
