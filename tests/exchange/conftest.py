"""The fixture that several of these test files share."""

from __future__ import annotations

import pytest

from tests.support.clocks import ShiftedClock


@pytest.fixture
def clock() -> ShiftedClock:
    return ShiftedClock()
