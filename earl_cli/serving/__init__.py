"""A model behind HTTP: the OpenAI protocol's image edits, and a page to use it from."""
