"""Describe the difference between two URLs or names that look alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import SplitResult, urlsplit

# Differences in a URL component, which are considered larger than all other differences.
_OF_PARTS: Final = frozenset({"the scheme differs", "the port differs", "the path differs"})


def describe_difference(expected: str, actual: str) -> str | None:
    """Describe how *actual* differs from *expected*, or return ``None`` if the values are equal or too dissimilar.

    The description does not contain the values.
    """
    if actual == expected:
        return None
    small = (
        (actual == f"{expected}/", "an extra trailing slash"),
        (f"{actual}/" == expected, "a missing trailing slash"),
        (actual.strip() == expected.strip(), "leading or trailing white space"),
        (actual.casefold() == expected.casefold(), "the capitalization differs"),
        (expected in (f"api://{actual}", actual.removeprefix("api://")), "the api:// prefix differs"),
    )
    found = next((difference for applies, difference in small if applies), None)
    return found or _compare_urls(_split(expected), _split(actual))


def closest_difference(expected: Iterable[str], actual: str) -> str | None:
    """Return the smallest difference that `describe_difference` finds between *actual* and any *expected* value."""
    found = [difference for value in expected if (difference := describe_difference(value, actual)) is not None]
    return min(found, key=_OF_PARTS.__contains__, default=None)


def _split(text: str) -> SplitResult | None:
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    return parts if parts.scheme and parts.netloc else None


def _compare_urls(expected: SplitResult | None, actual: SplitResult | None) -> str | None:
    if expected is None or actual is None:
        return None
    if expected.netloc.casefold() != actual.netloc.casefold():
        is_same_host = expected.hostname == actual.hostname and "@" not in actual.netloc
        return "the port differs" if is_same_host and expected.scheme == actual.scheme else None
    if expected.path.rstrip("/") != actual.path.rstrip("/"):
        return "the path differs"
    return "the scheme differs" if expected.scheme != actual.scheme else None
