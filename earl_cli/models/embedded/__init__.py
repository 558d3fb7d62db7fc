"""The model that ships with the package; README.md is its card."""
