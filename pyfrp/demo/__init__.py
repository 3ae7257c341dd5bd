"""A sample OpenAI-compatible API for `pyfrp demo`, tests and first tries."""
