"""The soak test, shortened: the same services and the same check of every response."""

import pytest

from tools.soak.hops import VARIANTS, soak

SHORT = {"users": 50, "connections": 8, "seconds": 120.0}


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_hops_never_mix_up_users(variant):
    """Each user receives their own token, and no token is lost."""
    result = soak(variant, requests=240, **SHORT)

    assert (result.requests, result.wrong, result.missing, result.failed) == (240, 0, 0, 0)


def test_soak_detects_missing_tokens():
    """If the relay is off, the tokens are counted as missing, so the soak test can fail."""
    result = soak("async", requests=40, propagators="tracecontext,baggage", **SHORT)

    assert result.missing > 0
    assert result.wrong == 0
    assert not result.is_clean
