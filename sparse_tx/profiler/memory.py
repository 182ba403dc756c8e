"""What a process holds in memory on Linux: read, counted anew, given back at once, and limited."""

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import torch

# Of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
# Larger requests get pages of their own, which go back to the system when they are freed.
_MMAP_THRESHOLD = 64 * 1024


def memory_field(path: str, field: str) -> int:
    """A field of one of Linux's tables of memory, such as ``VmRSS`` of a status, in bytes.

    Raises:
        OSError: there is no such table.
        KeyError: it has no such field.
    """
    for line in Path(path).read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def peak_is_known() -> bool:
    """Whether the system tells a process the most memory that it has held since a moment."""
    try:
        reset_peak()
        return memory_field("/proc/self/status", "VmHWM") > 0
    except (OSError, KeyError):
        return False


def reset_peak() -> None:
    """Let the most memory that this process has held, ``VmHWM``, begin anew at what it holds.

    Raises:
        OSError: the system cannot do that.
    """
    Path("/proc/self/clear_refs").write_text("5")


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return memory_field("/proc/self/status", "VmRSS")


def peak_resident_bytes(process: int | str = "self") -> int:
    """The most memory that a process, by its id, has held since ``reset_peak``, or ever."""
    return memory_field(f"/proc/{process}/status", "VmHWM")


def give_back_freed_memory() -> None:
    """Have malloc return freed memory at once, here and now and from now on.

    The resident set then is what is held, not what malloc keeps for later, and each allocation
    costs more time. Of glibc alone; elsewhere nothing happens.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
    libc.mallopt(_M_TRIM_THRESHOLD, 0)
    libc.mallopt(_M_TOP_PAD, 0)
    libc.malloc_trim(0)


def limit_memory(further_bytes: int, device: str) -> None:
    """Let this process allocate ``further_bytes`` beyond what it has, and then fail.

    On a CPU these are private pages that may be written to (``RLIMIT_DATA``): what is reserved and
    never touched counts too. On a GPU it is what torch's allocator takes.
    """
    if device == "cuda":
        share = (torch.cuda.memory_reserved() + further_bytes) / torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
        return
    with suppress(ImportError, KeyError, OSError):  # not on every system
        import resource

        limit = memory_field("/proc/self/status", "VmData") + further_bytes
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def free_bytes(device: str) -> int:
    """Memory that this process could still take on the device, ``cpu`` or ``cuda``.

    On a CPU, of what the machine has and of what the process's control groups leave, the less.

    Raises:
        OSError: the system does not tell.
        KeyError: the same.
    """
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    available = memory_field("/proc/meminfo", "MemAvailable")
    return min([available, *control_group_rooms(Path("/"))])


def control_group_rooms(root: Path) -> list[int]:
    """What is left of every limit on memory that control groups set this process, in bytes.

    Files that the kernel keeps in memory count as used there, but it drops them for who needs room.

    Args:
        root: the folder in which ``proc`` and ``sys`` lie.
    """
    found = []
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers == "":  # version 2
                base, limit, used, prefix = "", "memory.max", "memory.current", ""
            elif "memory" in controllers.split(","):
                base, prefix = "memory", "total_"
                limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
            else:
                continue
            # Within a container, the upper part of the path may not be there: its root is the top.
            top = root / "sys/fs/cgroup" / base
            group = top / place.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(top):
                    found += _left_of(folder, limit, used, prefix)
    return found


def _left_of(group: Path, limit: str, used: str, prefix: str) -> list[int]:
    """What is left of the limit of one control group; empty if it has none."""
    try:
        most, now = (group / limit).read_text().strip(), int((group / used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    if most == "max":
        return []
    files = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return [max(0, int(most) - now + files)]
