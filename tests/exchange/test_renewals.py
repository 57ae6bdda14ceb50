"""Each token and destination has at most one renewal trial in 30 seconds."""

from __future__ import annotations

from otel_token_relay.exchange.renewals import TRIAL_SECONDS, Renewals
from tests.support.clocks import StoppedClock


def test_a_second_caller_joins_the_trial_until_30_seconds_have_passed() -> None:
    """A caller joins an existing trial for 30 seconds, after which a new trial starts."""
    clock = StoppedClock()
    renewals = Renewals(clock)
    trial, is_ours = renewals.join(b"key")
    assert is_ours

    clock.seconds += TRIAL_SECONDS - 0.01
    assert renewals.join(b"key") == (trial, False)
    assert renewals.join(b"other")[1]
    clock.seconds += 0.01
    assert renewals.join(b"key")[0] is not trial


def test_only_an_accepted_token_is_used_by_others() -> None:
    """A trial without an accepted token is not a reason for other requests to retry."""
    renewals = Renewals()
    trial, _ = renewals.join(b"key")
    assert not trial.is_accepted

    trial.settle(True)
    trial.settle(False)  # only the first result is kept
    assert trial.is_accepted
    trial.has_ended = True
    assert not trial.is_accepted

    failed, _ = renewals.join(b"other")
    failed.settle(False)
    assert not failed.is_accepted


def test_the_number_of_trials_is_bounded() -> None:
    """The number of trials is limited, because callers can send any number of tokens."""
    renewals = Renewals(size=10)
    for number in range(100):
        renewals.join(b"%d" % number)

    assert len(renewals._trials) == 10
