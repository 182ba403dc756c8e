"""C++ files of the package, compiled at first use by the machine's own compiler."""

from sparse_tx.native.build import Kernel, KernelError
from sparse_tx.native.threads import thread_pool

__all__ = ["Kernel", "KernelError", "thread_pool"]
