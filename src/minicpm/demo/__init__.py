"""The web demo: a Gradio page over a model in this process, or over any server that speaks OpenAI's protocol."""
