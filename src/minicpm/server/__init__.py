"""The OpenAI-compatible server: HTTP in, HTTP out; the engine's thread does the work. Needs the `serve` extra."""
