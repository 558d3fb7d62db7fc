"""A VLM judge: its declaration, client, replies, cache and server."""
