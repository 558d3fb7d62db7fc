"""The commands of ``earl``: the function ``eval_list`` is ``earl eval list``; `earl_cli.app` knows its module.

A command reads its options, calls one function and shows the result. It is imported only to run or for its help.
"""
