"""The commands of ``earl``: a command's module has its name and holds one function of that name.

A command reads its options, calls one function and shows the result; ``earl_cli.app`` imports it only when it runs.
"""
