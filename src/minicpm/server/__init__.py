"""The server of OpenAI's and Ollama's APIs: HTTP in and out; the engine's thread works. Needs the `serve` extra."""
