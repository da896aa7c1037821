"""The KV cache of all texts within one budget: shared blocks, with or without a sliding window."""
