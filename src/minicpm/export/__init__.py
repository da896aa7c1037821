"""Writes model folders and files: conversions, quantized folders and GGUF. No other room writes a model to disk."""
