"""Tokenized data in the published format: ``.pth`` files and a list of them, read and written."""
