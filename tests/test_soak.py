"""A short soak test runs the same services and checks every response in the same way."""

import pytest

from tools.soak.hops import VARIANTS, soak

SHORT = {"users": 50, "connections": 8, "seconds": 120.0}


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_hops_never_mix_up_users(variant):
    """Each user receives their own token, and no token is lost."""
    result = soak(variant, requests=240, **SHORT)

    assert (result.requests, result.wrong, result.missing, result.failed) == (240, 0, 0, 0)


def test_soak_detects_missing_tokens():
    """If the relay is disabled, the soak test counts the missing tokens."""
    result = soak("async", requests=40, propagators="tracecontext,baggage", **SHORT)

    assert result.missing > 0
    assert result.wrong == 0
    assert not result.is_clean
