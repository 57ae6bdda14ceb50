"""The formula of docs/exchange-sizing.md matches the real cache, and its table and chart are up to date."""

from __future__ import annotations

import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from otel_token_relay.exchange import cache, engine
from otel_token_relay.verification import circuit_breaker
from tools import sizing

# As the page states, the formula ignores that some users do not return after a restart and that the cache is limited.
BEYOND = ("all processes restart within 10 minutes", "3,000 users: too many for the cache")


@pytest.mark.parametrize("row", [row for row in sizing.ROWS if row[0] not in BEYOND], ids=lambda row: row[0])
def test_the_formula_agrees_with_the_cache(row: tuple[str, sizing.Load]) -> None:
    """The formula matches the cache within three percent for each load in the table."""
    _, load = row

    assert sizing.simulate_scaled(load) == pytest.approx(sizing.estimate(load), rel=0.03)


def test_the_formula_is_the_one_of_the_page() -> None:
    """The formula matches the example on the page."""
    reached = 8 * (1 - math.exp(-84 / 8))

    assert sizing.estimate(sizing.EXAMPLE) == pytest.approx(1_000 * 2 * reached / 840)


def test_parts_of_a_token_are_on_the_safe_side() -> None:
    """The page's rule for results that expire before the callers' tokens never underestimates the number of
    exchanges.
    """
    for life in (30.0, 60.0, 300.0, 600.0, 900.0):
        for requests in (0.001, 0.01, 0.1, 1.0):
            load = replace(sizing.EXAMPLE, life=life, requests=requests)
            seconds = load.used / math.ceil(load.used / load.cached)
            part = replace(load, life=10_000.0, used=seconds)
            assert sizing.estimate(part) >= sizing.estimate(load) * 0.999


def test_a_restart_costs_at_most_one_exchange_for_each_cached_result() -> None:
    """A restart costs at most one exchange for each cached result, and the estimate is not far too high."""
    load = dict(sizing.ROWS)[BEYOND[0]]
    usual = sizing.estimate(replace(load, restart=None))
    simulated = sizing.simulate_scaled(load)

    assert usual * 1.5 < simulated <= sizing.estimate(load) * 1.03


def test_a_full_cache_costs_more() -> None:
    """A full cache causes more exchanges than a cache with enough space for all results."""
    load = dict(sizing.ROWS)[BEYOND[1]]

    assert sizing.simulate_scaled(load) > sizing.estimate(load) * 2
    assert sizing.simulate_scaled(replace(load, cache=20_000)) == pytest.approx(sizing.estimate(load), rel=0.03)


def test_the_simulation_is_the_same_in_every_run() -> None:
    """The simulation has the same result in every run with the same seed."""
    load = replace(sizing.EXAMPLE, users=20)

    assert sizing.simulate(load) == sizing.simulate(load) != sizing.simulate(load, seed=2)


def test_the_page_and_the_chart_are_up_to_date() -> None:
    """The page and the chart, which ``python tools/sizing.py`` writes, are up to date."""
    assert sizing.main(["--check"]) == 0
    root = ElementTree.parse(sizing.CHART).getroot()
    names = [child.tag.rpartition("}")[2] for child in root]
    assert names[:2] == ["title", "desc"]


def test_the_page_names_the_limits_of_the_code() -> None:
    """The numbers in the page's table match the limits in the code."""
    page = sizing.PAGE.read_text("utf-8")

    for limit in (
        f"| {engine.MAX_CONCURRENT}, of which {engine.MAX_NEW} ",
        f" and {engine.MAX_CONCURRENT - engine.MAX_NEW} for all other tokens",
        f"| {engine._MAX_PENDING} for ",
        f"| {engine.DEFAULT_TIMEOUT:.0f} seconds |",
        f"| after {cache._FAILURE_SECONDS:.0f} seconds |",
        f"| after {cache._OUTAGE_SECONDS:.0f} second |",
        f"| after {circuit_breaker.FAILURES_BEFORE_PROBE} failures in a row",
        f"for {circuit_breaker.OPEN_SECONDS:.0f} second;",
        f"| {cache.DEFAULT_SIZE:,} |",
    ):
        assert limit in page
    assert (sizing.MARGIN_SECONDS, sizing.MARGIN_SHARE) == (cache._MARGIN_SECONDS, cache._MARGIN_SHARE)
