"""The HTTP surface: vLLM's OpenAI classes with the `fusion` request field, its trace, and errors that name it."""
