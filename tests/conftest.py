"""Fixtures and settings that all tests share."""

import numpy as np
import pytest
from hypothesis import settings

# No deadline: the first example of a test may compile a kernel.
settings.register_profile("tapejit", deadline=None)
settings.load_profile("tapejit")


@pytest.fixture
def rng():
    """A generator with a fixed seed: a failure is the same on every machine."""
    return np.random.default_rng(20240917)
