"""Known faults of model files: how each is found, what a user sees of it, and how it is repaired."""
