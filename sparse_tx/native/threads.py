"""The threads that kernels share with torch."""

import ctypes
from functools import cache


@cache
def thread_pool() -> int | None:
    """The address of GOMP_parallel, which runs torch's own operators on Linux; None elsewhere.

    Two pools would spin against one another for the same cores.
    """
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (OSError, AttributeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p).value
