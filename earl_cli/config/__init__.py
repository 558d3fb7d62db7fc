"""Validated configs: files in Jsonnet, JSON, YAML or TOML, single values from the command line."""
