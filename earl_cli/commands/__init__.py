"""The commands of ``earl``: the function ``eval_list`` is ``earl eval list``; `earl_cli.app` knows its module.

A command reads its options, calls one function and shows the result; it is imported only to run or to show its help.
"""
