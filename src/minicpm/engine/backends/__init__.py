"""One backend per file or folder; each computes what engine/backend.py defines."""
