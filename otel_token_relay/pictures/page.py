"""Render a run as a self-contained HTML page that makes no network requests.

The page contains the run as JSON. The page's script builds all elements from the JSON and inserts text only through
``textContent``. The page's content security policy uses hashes to allow only the page's own script and style sheet. The
page contains only ASCII characters.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from importlib import resources
from typing import Any, Final

from otel_token_relay.pictures.runs import Hop, Run, Trace
from otel_token_relay.reasons import Reason

MAX_HOPS: Final = 2000
"""The maximum number of hops. Browsers display this many hops without a noticeable delay."""

_REASONS: Final = {reason.value: reason for reason in Reason}
_SLOT: Final = re.compile(r"\{\{(\w+)\}\}")
# Only "<" can end a script element (HTML, section "Restrictions for contents of script elements"). Escaping the other
# characters makes the data safe in other contexts, such as a page that embeds this page's source code.
_UNSAFE: Final = re.compile(r"[<>&'`]")


def write_page(run: Run) -> str:
    """Return the HTML page for *run*."""
    style, script = _part("page.css"), _part("page.js")
    slots = {"policy": _policy(style, script), "style": style, "script": script, "data": _embed(_describe(run))}
    # Fill all slots in a single pass so that data cannot be mistaken for a slot.
    return _SLOT.sub(lambda slot: slots[slot[1]], _part("page.html"))


@cache
def _part(name: str) -> str:
    return resources.files("otel_token_relay.pictures").joinpath(name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none';"
        " form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _embed(data: object) -> str:
    """Return *data* as JSON that can be embedded in a script element."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _describe(run: Run) -> dict[str, Any]:
    places = {lane: place for place, lane in enumerate(run.lanes)}
    used = dict.fromkeys(hop.reason for trace in run.traces for hop in trace.hops if hop.reason in _REASONS)
    return {
        "lanes": list(run.lanes),
        "summary": run.summary(),
        "notes": list(run.notes),
        "counts": dict(run.counts),
        "reasons": {name: [_REASONS[name].meaning, _REASONS[name].advice] for name in used},
        "traces": [_describe_trace(trace, places) for trace in run.traces],
    }


def _describe_trace(trace: Trace, places: dict[str, int]) -> dict[str, Any]:
    return {
        "id": trace.trace_id,
        "user": trace.user,
        "hidden": trace.hidden,
        "notes": list(trace.notes),
        "hops": [_describe_hop(hop, places) for hop in trace.hops],
    }


def _describe_hop(hop: Hop, places: dict[str, int]) -> dict[str, Any]:
    return {
        "from": places[hop.sender],
        "to": places[hop.receiver],
        "outcome": hop.outcome,
        "reason": hop.reason,
        "entry": hop.entry,
        "exchange": hop.exchange,
        "name": hop.name,
        "at": _milliseconds(hop.at),
        "duration": _milliseconds(hop.duration),
    }


def _milliseconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:,.1f} ms"
