"""From requests to text: the public LLM and the backends that compute for it."""
