"""The README links to the frequently asked questions, and each section contains the required command or variable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAQ = (ROOT / "docs" / "faq.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", FAQ, re.DOTALL | re.MULTILINE))

# This table maps the anchor of each section to the text that a reader copies.
EXPECTED = {
    "does-it-run-in-kubernetes": "OTEL_PYTHON_TOKEN_RELAY_CLIENT_ASSERTION_FILE",
    "how-do-i-replace-the-header-that-i-set-by-hand": "otel-token-relay explain",
    "how-do-i-switch-it-off-in-an-incident": "OTEL_PROPAGATORS=tracecontext,baggage`",
    "does-it-work-over-http2": "http2=True",
    "does-it-work-with-gunicorn---preload-and-several-workers": "gunicorn --preload",
    "how-do-i-test-with-mocks": "httpx.MockTransport",
    "do-i-need-it-if-i-run-a-service-mesh": "OTEL_PYTHON_TOKEN_RELAY_PLAINTEXT_HOSTS",
    "does-sentry-still-see-the-token": "before_send",
    "may-an-mcp-server-pass-the-callers-token-on": ";audience=api",
    "which-variable-does-x": "OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS",
    "does-a-celery-task-get-the-callers-token": ";without-user=client",
    "how-does-the-service-call-with-its-own-credential": "as_service()",
    "how-do-i-find-the-decisions-in-jaeger": "token_relay.decision=withheld",
    "what-does-it-cost": "make bench",
    "can-the-token-be-in-another-header": "OTEL_PYTHON_TOKEN_RELAY_SOURCE_HEADERS",
    "what-may-change-with-an-upgrade": "otel-token-relay check --all",
    "how-do-i-find-the-cause-of-a-401": "otel-token-relay explain",
}


def anchor_of(heading: str) -> str:
    """Return the anchor that GitHub generates for a heading: lowercase, without punctuation, and with hyphens."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_section_is_expected() -> None:
    """The page contains exactly the expected sections, and each anchor is unique."""
    assert sorted(map(anchor_of, SECTIONS)) == sorted(EXPECTED)
    assert len(SECTIONS) == len(re.findall(r"^## ", FAQ, re.MULTILINE))


@pytest.mark.parametrize("heading", SECTIONS)
def test_each_section_contains_what_to_type(heading: str) -> None:
    """Each section contains the command or the variable, and a link to the page with the details."""
    assert EXPECTED[anchor_of(heading)] in SECTIONS[heading]
    assert re.search(r"\]\([^)]+\)", SECTIONS[heading])


def test_the_readme_links_to_the_page() -> None:
    """The README contains a link to the page."""
    assert "/docs/faq.md)" in (ROOT / "README.md").read_text("utf-8")
