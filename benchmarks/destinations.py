"""Measure the cost of a long list of destinations, which must be close to the cost of a list with one entry."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import cycle
from typing import Any

from benchmarks.figures import Figure, figure
from benchmarks.hops import httpx, httpx_timing, relay
from benchmarks.measure import Effort, side_by_side, statement
from benchmarks.samples import DESTINATION, context_of_request
from otel_token_relay import Destination
from otel_token_relay.policy import RelayPolicy

MANY = 10_000
WILDCARD = "https://*.prod.svc.cluster.local:8443"


def _exact(count: int) -> tuple[str, ...]:
    return (DESTINATION, *(f"https://service-{number}.internal" for number in range(count - 1)))


def _wildcards(count: int) -> tuple[str, ...]:
    return (WILDCARD, *(f"https://*.team-{number}.internal" for number in range(count - 1)))


def _policy(entries: tuple[str, ...]) -> RelayPolicy:
    return RelayPolicy(map(Destination.parse, entries))


def _first_time(policy: RelayPolicy, hosts: list[str]) -> Any:
    """Return the timing of uncached lookups of *hosts* in turn. The number of hosts must exceed the size of the
    cache.
    """
    names = {"find": policy.find, "next": partial(next, cycle(hosts))}
    return statement("find('https', next(), 8443)", names)


def measure_destinations(effort: Effort) -> Iterator[Figure]:
    """Yield the cost with 10,000 entries divided by the cost with one entry."""
    context = context_of_request(token=True)
    make = partial(
        figure, cost=lambda one: one["many"], by=lambda one: one["one"], group="10,000 destinations instead of one"
    )
    timings = {
        "one": httpx_timing(httpx, relay(), context),
        "many": httpx_timing(httpx, relay(_exact(MANY)), context),
    }
    yield make(side_by_side(timings, effort), name="the whole hop on httpx", yardstick="the same with one", target=1.1)

    strangers = [f"host-{number}.prod.svc.cluster.example" for number in range(MANY)]
    members = [f"host-{number}.prod.svc.cluster.local" for number in range(MANY)]
    for name, entries, hosts in (
        ("lookup of a new origin, exact entries", _exact, strangers),
        ("lookup of a new origin, wildcards", _wildcards, members),
    ):
        timings = {
            "one": _first_time(_policy(entries(1)), hosts),
            "many": _first_time(_policy(entries(MANY)), hosts),
        }
        yield make(side_by_side(timings, effort), name=name, yardstick="the same with one", target=1.1)
