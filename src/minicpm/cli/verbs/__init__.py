"""One file per verb, with `add_arguments(parser)` and `run(args) -> int`."""
