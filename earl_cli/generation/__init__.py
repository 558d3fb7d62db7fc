"""Sampling: prompts in, finished sequences out, through engines that all obey the same grammar."""
