"""What a process that trains sets up once."""

import ctypes

import torch

# Names and values of glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # bytes; glibc refuses larger ones
KEPT = 2**30  # bytes


def prepare_training(threads: int) -> None:
    """Set torch's threads, and keep memory that is freed for what is allocated next.

    Every update allocates what the last one has freed. By default glibc gives much of it back to
    the system in between, and to get it again page by page is up to a third of a small update.
    Other C libraries are left as they are.
    """
    torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, KEPT)
