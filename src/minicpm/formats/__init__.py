"""One file per on-disk format, all speaking (DecoderConfig, TensorView).

Nothing here imports torch or transformers, and nothing here runs code found in a model folder.
"""
