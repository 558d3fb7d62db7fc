"""Validated configs: files in Jsonnet, JSON or YAML, single values from the command line."""
