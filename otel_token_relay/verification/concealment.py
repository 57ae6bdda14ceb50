"""Make values from an unverified token safe to print.

The results contain no credentials, consist of printable ASCII characters, and have a limited length.

A malicious token can contain a copy of its own encoded header in ``aud``, another caller's token in ``iss``, or
terminal control sequences.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from otel_token_relay.printable import escape, shorten
from otel_token_relay.redaction.scrubber import MASK, Scrubber
from otel_token_relay.redaction.token_search import LONGEST_SURVIVOR, KnownTokens

# Searching a value takes longer as its length increases, and callers control the length. For this reason, values are
# truncated before they are searched. The searched text is longer than the displayed text, so credentials at the end of
# the displayed text are still recognized.
_MIN_SEARCHED: Final = 1024
_SEARCHED_FOR_EACH_SHOWN: Final = 4
_scrubber: Final = Scrubber()


class Concealment:
    """A filter that conceals credentials in the values of one token. Use this class whenever you print a value from the
    token.

    Args:
        token: The token as received.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self._known = KnownTokens((token,))

    def text(self, text: str, limit: int) -> str:
        """Mask every credential in *text*, escape the text, and truncate the result to *limit* characters.

        The result never contains 17 or more consecutive characters of the token, whether in plain text or encoded.
        """
        # Search the escaped text again, because an escape sequence ends in letters and digits that might extend a
        # shorter run of characters from the token.
        searched = text[: max(_MIN_SEARCHED, _SEARCHED_FOR_EACH_SHOWN * limit)]
        escaped = escape(_scrubber.clean_text(searched, self._known))
        # Escaping can expand one character to as many as ten.
        return shorten(self._mask_runs(escaped[: _SEARCHED_FOR_EACH_SHOWN * limit + LONGEST_SURVIVOR]), limit)

    def value(self, value: Any, limit: int) -> str:
        """Process a JSON value in the same way as `text`. A value that is not a string is first serialized as JSON."""
        return self.text(value if isinstance(value, str) else to_json(value), limit)

    def values(self, values: Iterable[Any], *, limit: int, count: int) -> tuple[str, ...]:
        """Conceal credentials in the first *count* values. If there are more values, append the number of remaining
        values."""
        values = list(values)
        shown = [self.value(value, limit) for value in values[:count]]
        return (*shown, f"{len(values) - count} more") if len(values) > count else tuple(shown)

    def _mask_runs(self, text: str) -> str:
        size = LONGEST_SURVIVOR + 1
        if len(self._token) < size:
            return text
        masked, done, at = [], 0, 0
        while at + size <= len(text):
            end = at + size
            if text[at:end] not in self._token:
                at += 1
                continue
            while end < len(text) and text[at : end + 1] in self._token:
                end += 1
            masked += [text[done:at], MASK]
            done = at = end
        return "".join([*masked, text[done:]])


def to_json(value: Any) -> str:
    """Serialize a value as JSON. Replace each part that JSON cannot represent with the name of its type."""
    return json.dumps(value, default=lambda part: type(part).__name__)
