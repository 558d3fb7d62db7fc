"""What follows a picture's sampling, done while others are still sampled: one more thread, one picture at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import torch


class Beside(ThreadPoolExecutor):
    """One thread beside the one that samples; it gives the bits that this one would give.

    torch counts threads by the thread, and convolutions round by their number, so this thread's number is taken over.
    Gradients, inference and autocast are by the thread as well, and as at first: what is done here sets what it needs.
    At the end of a ``with``, by an error or Ctrl-C too, what hasn't begun is dropped and what has is waited for, so
    results that are wanted are to be waited for inside; work of several steps looks at ``ending`` between them.
    """

    def __init__(self) -> None:
        super().__init__(1, "beside", torch.set_num_threads, (torch.get_num_threads(),))
        self.ending = Event()

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self.shutdown(cancel_futures=True)
