"""What all tests share."""

import os

import torch
from hypothesis import settings

from tests.browser import browser

__all__ = ["browser"]  # a fixture

# Workers of pytest-xdist share the cores, and threads of several in one place are many times slower
# than each alone. Processes that tests start find it in the environment.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

# A busy machine is no failure: the time of a single example is not judged.
settings.register_profile("sparse_tx", deadline=None)
settings.load_profile("sparse_tx")
