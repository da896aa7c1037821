"""What is published about the models of 2024 and can be compared: hashes of files, ids of a prompt, perplexities.

Of the weights no hash is known here; a report gives theirs, so that two people can compare.
"""

from __future__ import annotations

from dataclasses import dataclass

# openbmb/MiniCPM-2B-sft-bf16 at revision 4ec16344. The tokenizer's files are the same in all MiniCPM-2B.
FILES_SHA256 = {
    "41cf26cfdca93f49209a6c0c26c00b281d6408e010ddc8cca9531c825cc17fc4": "config.json of MiniCPM-2B-sft-bf16",
    "c9aafcd7da1f5611dab6be545db74d5552a2ccc9c2a12c72ea7be63aac4a25d7": "tokenizer.model of MiniCPM-2B",
    "42f73d01995bd71c88647b13ac696b36d84d5126d0c7cbaef6f8d872d5c97dff": "tokenizer.json of MiniCPM-2B",
    "9c87efade54e9b26d3374a42f294d266722cbf9e97c748a12183d8317da074c9": "tokenizer_config.json of MiniCPM-2B",
    "b7c3364c951835175e9057ef219c92739e2961456df79bbd464fa1ca6c6b3843": "tokenizer_config.json of MiniCPM-2B, "
    "February 2024",
    "6fa06efa2785e450051989a6f8fb4416b10149ded485ddd3f127a40734f5cfd0": "special_tokens_map.json of MiniCPM-2B",
}

# inference/vllm/examples/infer_cpm/prompts/prompt_demo.txt of the release, and the ids of its prompt.
QUESTION = "Which city is the capital of China?"
ANSWERS = ("Beijing", "北京")
PROMPT_IDS = (1, 1786, 4194, 95388, 28780, 4342, 1410, 1358, 8107, 1379, 6213, 74, 95396, 10850, 95388)


@dataclass(frozen=True)
class Perplexity:
    """Of the test set of wikitext-2-raw-v1, in windows of 2,048 tokens without overlap: AutoAWQ's evaluation, as the
    authors ran it (casper-hansen/AutoAWQ, pull request 504)."""

    model: str
    weights: str
    windows: int
    perplexity: float


WINDOW_TOKENS = 2048
# (hidden_size, num_hidden_layers) -> what is published of that model.
PERPLEXITIES = {
    (2304, 40): (
        Perplexity("MiniCPM-2B", "bf16", 159, 7.981),
        Perplexity("MiniCPM-2B", "AWQ, 4 bits", 159, 8.152),
        Perplexity("MiniCPM-2B", "GPTQ, 4 bits", 159, 8.669),
    ),
    (1536, 52): (
        Perplexity("MiniCPM-1B", "bf16", 164, 8.576),
        Perplexity("MiniCPM-1B", "AWQ, 4 bits", 164, 8.867),
        Perplexity("MiniCPM-1B", "GPTQ, 4 bits", 164, 9.416),
    ),
}
