"""Known faults of model files: how each is found, what it does to a user, and how it is mended."""
