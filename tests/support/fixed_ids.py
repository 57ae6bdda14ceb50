"""Fixed span and trace IDs."""

from __future__ import annotations


class FixedIds:
    """A generator that returns the same IDs in each run, so that two runs can be compared."""

    def __init__(self) -> None:
        self.last = 0

    def generate_trace_id(self) -> int:
        self.last += 1
        return self.last

    generate_span_id = generate_trace_id

    def is_trace_id_random(self) -> bool:
        return False
