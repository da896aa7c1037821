"""One backend per file or folder. Each implements the interface of engine/backend.py."""
