"""The page is self-contained, has a security policy, and contains the recording only in its data."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from otel_token_relay.pictures.page import MAX_HOPS, write_page
from otel_token_relay.pictures.runs import build_run
from otel_token_relay.pictures.spans import read_recording
from otel_token_relay.reasons import Reason
from tests.support.otlp_json import decided, every_outcome, lines_of, make_span, request_of
from tests.support.tokens import claims, make_token


def page_of(text: str) -> str:
    return write_page(build_run(read_recording(text), max_hops=MAX_HOPS))


def data_in(page: str) -> str:
    (data,) = re.findall(r'<script type="application/json" id="run">(.*?)</script>', page, re.DOTALL)
    return data


def with_texts(text: str) -> str:
    """Return a recording in which all texts are identical."""
    texts = {
        "token_relay__reason": text,
        "token_relay__entry": text,
        "token_relay__origin": text,
        "token_relay__exchange__result": text,
        "demo__user": text,
        "peer__service": text,
    }
    spans = [
        make_span("01", "99", 2, name=text, trace=text, **texts),
        make_span("02", "01", name=text, trace=text, **texts, token_relay__decision="withheld"),
        make_span("03", "01", name=text, trace=text, **texts, token_relay__decision=text),
    ]
    return lines_of(request_of(text, *spans))


def test_the_policy_allows_only_the_pages_own_parts() -> None:
    """The policy contains only the hashes of the page's style sheet and script."""
    page = page_of(every_outcome())

    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (script, style)]
    assert rules == {
        "default-src": "'none'",
        "script-src": f"'sha256-{hashes[0]}'",
        "style-src": f"'sha256-{hashes[1]}'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert page.count("<script") == 2
    assert not re.search(r"https?:(?!//www\.w3\.org/2000/svg)", page.replace(data_in(page), ""))
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(|\bon\w+=|style=", page)


@pytest.mark.parametrize(
    "text",
    [
        "</script><script>alert(1)</script>",
        "<!--<script>",
        "]]>",
        "{{script}}{{data}}",
        "\u2028\u2029\x00",
        "'\"`&<>",
        "服务\ud800",
        "__proto__",
    ],
)
def test_no_text_leaves_the_data(text: str) -> None:
    """Outside its data, which is ASCII JSON, the page is the same for every recording."""
    page, other = page_of(with_texts(text)), page_of(with_texts("x"))

    assert page.replace(data_in(page), "") == other.replace(data_in(other), "")
    assert page.isascii()
    assert not re.search(r"[<>&'`]", data_in(page))
    assert len(json.loads(data_in(page))["traces"][0]["hops"]) == 3


@pytest.mark.parametrize(
    "token",
    [make_token(claims("https://idp.example")), "gho_16C7e42F292c6912E7710c838347Ae178B4a"],
    ids=["JWT", "opaque"],
)
def test_no_token_is_in_the_page(token: str) -> None:
    """A token is masked in every text of the page."""
    page = page_of(with_texts(token))

    assert not [token[start : start + 17] for start in range(len(token) - 16) if token[start : start + 17] in page]
    assert "[REDACTED]" in page


def test_the_meaning_of_a_reason_is_in_the_page() -> None:
    """The page explains only the reasons that occur in its recording."""
    data = json.loads(data_in(page_of(lines_of(request_of("a", make_span("01", **decided("withheld", "no_token")))))))

    assert data["reasons"] == {"no_token": [Reason.NO_TOKEN.meaning, Reason.NO_TOKEN.advice]}


def test_ten_thousand_spans() -> None:
    """A page contains at most 2,000 hops and states the total number."""
    spans = [make_span(f"{n:x}", "0", at=n, trace=f"{n % 50:032x}") for n in range(1, 10_001)]

    data = json.loads(data_in(page_of(lines_of(request_of("a", *spans)))))

    assert data["summary"] == "Shown: 2,000 of 10,000 hops, 10 of 50 traces."
    assert sum(len(trace["hops"]) for trace in data["traces"]) == 2000
