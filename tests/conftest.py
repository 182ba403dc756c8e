"""What all tests share."""

from hypothesis import settings

from tests.browser import browser

__all__ = ["browser"]  # a fixture

# A busy machine is no failure: the time of a single example is not judged.
settings.register_profile("sparse_tx", deadline=None)
settings.load_profile("sparse_tx")
