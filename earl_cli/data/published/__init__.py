"""The published .pth data: a format of 2025 that is read and written, and stays as it is."""
