"""Writes model folders and files: conversions, quantized folders, GGUF. The only room that creates a model on disk."""
