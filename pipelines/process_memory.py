"""Memory of this process, as the system counts it; the standard library alone.

pipelines.edge.runtime, which loads nothing of ours but the edge, reads its own peak.
"""

import os
import sys
from pathlib import Path


def resident_bytes() -> int:
    """What this process holds now; where the system does not say, its peak."""
    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return _peak_since_fork()


def peak_bytes() -> int:
    """The most that this process ever held."""
    if sys.platform == "linux":
        # Not ru_maxrss: a child's starts at what its parent held when it was forked.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return _peak_since_fork()


def _peak_since_fork() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
