"""What all tests of the agent share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_power_cut() -> Iterator[None]:
    """Nobody cuts the power here: syncing the whole machine would only make tests wait for whatever else it writes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "sync", lambda: None)
        yield
