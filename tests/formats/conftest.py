"""Fixtures of the rooms that read model folders."""

from tiny_folders import model_folder, tiny  # noqa: F401
