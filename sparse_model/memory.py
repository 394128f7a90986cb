"""The C library's allocator, set for inference on a CPU."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_MOST = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Let this process reuse memory that tensors gave back, instead of returning it to the kernel.

    By default glibc returns large pieces at once, and every operation after that pays for new pages: sparse
    reading, which is many operations on pieces of a few MiB, took up to twice its time. The largest memory of
    a process grows by a few percent. Elsewhere than on Linux with glibc this does nothing.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, _MOST)
        mallopt(_M_ARENA_MAX, 1)  # one heap for all threads, or each would keep what it freed
