"""Render a run as a Mermaid sequence diagram in ASCII.

Mermaid represents special characters as numeric escapes, such as ``#59;`` for a semicolon. This module escapes all
characters except letters, digits, spaces, and a few punctuation marks, so no string can end a statement or start a
directive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from otel_token_relay.pictures.runs import INCOMING, UNDECIDED, WITHHELD, Hop, Run, Trace
from otel_token_relay.printable import shorten

MAX_HOPS: Final = 250
"""The maximum number of hops. Mermaid rejects diagrams with more than 500 arrows or 50,000 characters."""
_MAX_NAME: Final = 40
_MAX_CHARACTERS: Final = 45_000

# A dotted arrow represents a hop to which the relay did not add a token.
_ARROWS: Final = {WITHHELD: "--x", UNDECIDED: "-->>", INCOMING: "->>"}
_LABELS: Final = {INCOMING: "request", UNDECIDED: "no decision"}
_SPECIAL: Final = re.compile(r"[^A-Za-z0-9 ,._/-]")


def write_mermaid(run: Run) -> str:
    """Return the diagram's Mermaid source code."""
    ids = {lane: f"p{number}" for number, lane in enumerate(run.lanes)}
    lines = ["sequenceDiagram", f"    %% {run.summary()}"]
    lines += [f"    participant {ids[lane]} as {escape(lane, _MAX_NAME)}" for lane in run.lanes]
    length = sum(map(len, lines))
    left_out = 0
    for number, trace in enumerate(run.traces, 1):
        for line in _trace_lines(trace, number, ids, is_only=len(run.traces) == 1):
            length += len(line) + 1
            if length <= _MAX_CHARACTERS:
                lines.append(line)
            else:
                left_out += 1
    if left_out:
        lines.insert(2, f"    %% {left_out:,} more lines are omitted, because Mermaid limits the length of a diagram.")
    return "\n".join(lines) + "\n"


def escape(text: str, limit: int) -> str:
    """Truncate *text* to *limit* characters, and escape special characters."""
    # Replace an empty or blank string, which would cause a syntax error.
    return _SPECIAL.sub(lambda found: f"#{ord(found[0])};", shorten(text, limit)).strip() or "#32;"


def _trace_lines(trace: Trace, number: int, ids: dict[str, str], *, is_only: bool) -> Iterator[str]:
    if not is_only or trace.user:
        title = f"trace {number}" + (f", called by {trace.user}" if trace.user else "")
        first = ids[trace.hops[0].sender]
        yield f"    Note over {first}: {escape(title, _MAX_NAME)}"
    for hop in trace.hops:
        arrow = _ARROWS.get(hop.outcome, "->>")
        yield f"    {ids[hop.sender]}{arrow}{ids[hop.receiver]}: {escape(_label(hop), 2 * _MAX_NAME)}"


def _label(hop: Hop) -> str:
    label = _LABELS.get(hop.outcome, hop.outcome)
    return f"{label}, {hop.reason}" if hop.reason and hop.reason != hop.outcome else label
