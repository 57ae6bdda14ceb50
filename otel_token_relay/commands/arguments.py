"""Parse command-line arguments without printing a credential that a user passed by mistake.

Users must not pass a token as an argument, because other users of the machine can read a program's arguments. By
default, argparse quotes unexpected arguments in its error messages, which could expose a token in a log.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Final, NoReturn

from otel_token_relay.printable import escape
from otel_token_relay.redaction.credential_patterns import looks_like_credential
from otel_token_relay.redaction.scrubber import MASK, Scrubber
from otel_token_relay.redaction.token_search import NOTHING
from otel_token_relay.redaction.unknown_tokens import BUILT_IN_RULES

# All command names and option names are shorter than this limit.
_MAX_SHOWN: Final = 40

_has_dotted_parts = re.compile(r"[\w-]{8,}\.[\w-]{8,}\.[\w-]*", re.ASCII).search
_is_option = re.compile(r"--?[a-z][a-z-]*", re.ASCII).fullmatch
# For an argument such as `--json=value`, argparse quotes the entire value in this error message.
_EXPLICIT: Final = re.compile(r"(?<=ignored explicit argument ).*", re.DOTALL)
_WORD: Final = re.compile(r"[^\s'\"(),]+")


def looks_like_token(argument: str) -> bool:
    """Return whether an argument contains text that looks like a credential."""
    return (
        looks_like_credential(argument)
        or bool(BUILT_IN_RULES.intervals_in(argument))
        or argument.lower().startswith("bearer ")
        or (_has_dotted_parts(argument) is not None and "://" not in argument)
    )


class Parser(argparse.ArgumentParser):
    """An argument parser that masks long arguments and possible credentials in its error messages."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the masked *message*, and then exit with status 2."""
        super().error(mask_arguments(message))


def mask_arguments(message: str) -> str:
    """Mask long arguments and possible credentials in an error message from argparse."""
    message = Scrubber().clean_text(_EXPLICIT.sub(MASK, message), NOTHING)
    return escape(_WORD.sub(lambda word: _mask_word(word[0]), message))


def conceal(text: str) -> str:
    """Mask possible credentials in *text*, such as a token in a setting."""
    text = Scrubber().clean_text(text, NOTHING)
    return _WORD.sub(lambda word: MASK if looks_like_token(word[0]) and "://" not in word[0] else word[0], text)


def describe_unrecognized(arguments: Sequence[str], instead: str | None) -> str:
    """Return the error message for unrecognized arguments.

    Args:
        arguments: The unrecognized arguments.
        instead: The message to return if any argument is not an option, or ``None`` to always list the arguments.
    """
    names = [argument.partition("=")[0] if argument.startswith("-") else argument for argument in arguments]
    if instead is not None and not all(map(_is_option, names)):
        return instead
    return f"unrecognized arguments: {' '.join(names)}"


def _mask_word(word: str) -> str:
    name, equals, _ = word.partition("=")
    if equals and name.startswith("-"):
        word = name
    return MASK if len(word) > _MAX_SHOWN or "@" in word or looks_like_token(word) else word
