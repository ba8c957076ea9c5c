"""What a call takes of memory, to the page."""

import ctypes
import gc
import resource
import time
from pathlib import Path

_LIBC = ctypes.CDLL("libc.so.6")
_ARENA_MAX, _MMAP_THRESHOLD = -8, -3  # of mallopt


def status(field):
    """Bytes, of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def capped(call, size=None):
    """Seconds, and bytes at the peak above what there was, of a call that may have `size` bytes of addresses more."""
    gc.collect()
    _LIBC.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    before, (free, most) = status("VmRSS"), resource.getrlimit(resource.RLIMIT_AS)
    if size is not None:
        resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + size, most))
    try:
        begin = time.perf_counter()
        result = call()
        return time.perf_counter() - begin, status("VmHWM") - before, result
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (free, most))


# Blocks of 128 KiB and more come from the kernel, and go back to it, whatever was freed before; and no thread reserves an arena.
_LIBC.mallopt(_MMAP_THRESHOLD, 2**17)
_LIBC.mallopt(_ARENA_MAX, 1)
