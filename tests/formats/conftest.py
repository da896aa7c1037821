"""Fixtures of the rooms that read model folders."""

from model_folders import model_folder, tiny  # noqa: F401
