"""A filter for ``logging`` handlers outside OpenTelemetry, such as file and console handlers."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from otel_token_relay.otel import get_current
from otel_token_relay.redaction.known_tokens import listen, tokens_in_context
from otel_token_relay.redaction.records import ScrubberInForce
from otel_token_relay.redaction.scrubber import FAILED, MASK
from otel_token_relay.redaction.token_search import LONGEST_SURVIVOR
from otel_token_relay.settings import Settings

# The standard attributes whose values the application chooses.
_NAMES: Final = frozenset({"funcName", "name", "processName", "taskName", "threadName"})
# The attributes that every record has. The application can add more attributes (``extra=``).
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

# Since Python 3.12, a filter can return a different record.
_MAY_REPLACE: Final = sys.version_info >= (3, 12)

_exceptions = logging.Formatter()

# A function that returns a value with its tokens masked, or the same object if the value contains no tokens.
Clean = Callable[[Any], Any]


class RedactingFilter(logging.Filter):
    """A filter that masks tokens in a handler's records.

    Where possible, the filter preserves the number of arguments, the values of numeric arguments, and the classes of
    mapping arguments. The access logs of uvicorn, gunicorn, and hypercorn depend on this behavior. If an object's
    string representation contains a token, the object is replaced with the masked string.

    On Python 3.11, a filter cannot replace a record, so this filter modifies the record itself. Subsequent handlers
    therefore also receive the masked record.

    Args:
        settings: The settings to use. By default, the filter uses the installed settings, or the settings from the
            environment if none are installed. The ``redaction`` setting is ignored.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__()
        self._find_scrubber = ScrubberInForce(settings)
        listen()

    def filter(self, record: logging.LogRecord) -> bool | logging.LogRecord:  # type: ignore[override]  # since 3.12
        """Mask the tokens in the record. The filter never drops a record."""
        try:
            known = tokens_in_context(get_current())
            changes = _changes(record, partial(self._find_scrubber().redact, known=known))
        except Exception:  # fail closed, and let the application continue
            changes = _wiped(record)
        if not changes:
            return True
        if _MAY_REPLACE:
            masked = logging.makeLogRecord(record.__dict__)
            masked.__dict__.update(changes)
            return masked
        record.__dict__.update(changes)
        return True


def _wiped(record: logging.LogRecord) -> dict[str, Any]:
    """Return new attribute values that do not contain the record's data.

    Some formatters, such as uvicorn's, unpack a fixed number of arguments. The number of arguments is therefore
    preserved, and the message formats each argument as an empty string.
    """
    args = record.args if isinstance(record.args, tuple) else ()
    extras = {name: FAILED for name in record.__dict__ if name not in _STANDARD}
    kept = tuple(arg if type(arg) in (bool, int, float) else FAILED for arg in args)
    message = "%.0s" * len(kept) + FAILED
    return {**extras, "msg": message, "args": kept, "exc_info": None, "exc_text": None, "stack_info": None}


def _changes(record: logging.LogRecord, clean: Clean) -> dict[str, Any]:
    """Return new values for the record's attributes that contain tokens."""
    changes = {
        name: new
        for name, value in record.__dict__.items()
        if name not in _STANDARD and (new := _clean_named(name, value, clean)) is not value
    }
    changes |= _changed_message(record, clean)
    changes |= _changed_traceback(record, clean)
    for name in ("stack_info", *_NAMES):
        value = getattr(record, name, None)
        if value is not None and (new := clean(value)) is not value:
            changes[name] = new
    return changes


def _clean_named(name: str, value: Any, clean: Clean) -> Any:
    holder = {name: value}
    cleaned = clean(holder)
    if cleaned is holder:
        return value
    return cleaned.get(name, MASK) if isinstance(cleaned, dict) else FAILED


def _changed_message(record: logging.LogRecord, clean: Clean) -> dict[str, Any]:
    message, args = record.msg, record.args
    changes: dict[str, Any] = {}
    if (clean_message := clean(message)) is not message:
        changes["msg"] = clean_message
    clean_args: Any = args
    if isinstance(args, tuple):
        cleaned = tuple(clean(arg) for arg in args)
        if any(new is not old for new, old in zip(cleaned, args, strict=True)):
            changes["args"] = clean_args = cleaned
    elif args and (items := clean(args)) is not args:
        changes["args"] = clean_args = _with_items(args, items, clean)
    return changes | _changed_together(message, args, clean_message, clean_args, clean)


def _changed_together(message: Any, args: Any, clean_message: Any, clean_args: Any, clean: Clean) -> dict[str, Any]:
    """Mask tokens that are recognizable only in the formatted message, as in ``"Bearer %s"``.

    Args:
        message: The original message.
        args: The original arguments.
        clean_message: The message, which was masked separately from the arguments.
        clean_args: The arguments, which were masked separately from the message.
        clean: A function that masks the tokens in a value.
    """
    if not args:
        return {}
    try:
        text = str(message) % args
    except Exception:  # logging itself reports this error
        return {}
    if (clean_text := clean(text)) is text:
        return {}
    message = str(clean_message)
    if not isinstance(args, tuple):
        items = dict(clean_args.items())
        for mask in (partial(_masked_part, text=text, clean_text=clean_text), _masked):
            masked: Any = _with_items(clean_args, {key: mask(arg) for key, arg in items.items()}, clean)
            if _is_clean(message, masked, clean):
                return {"msg": message, "args": masked}
        # Some mappings return values other than their stored items. For such a mapping, only the formatted message can
        # be masked.
        return {"msg": clean_text, "args": None}
    args = tuple(_masked_part(arg, text, clean_text) for arg in clean_args)
    if _is_clean(message, args, clean):
        return {"msg": message, "args": args}
    for at in range(len(args)):
        masked = (*args[:at], _masked(args[at]), *args[at + 1 :])
        if _is_clean(message, masked, clean):
            return {"msg": message, "args": masked}
    masked = tuple(_masked(arg) for arg in args)
    return {"args": masked, "msg": message if _is_clean(message, masked, clean) else clean(message)}


def _masked_part(arg: Any, text: str, clean_text: str) -> Any:
    """Mask an argument that is part of a token in the formatted message.

    An argument (for example, a JWT's signature) can look harmless after the rest of the token has been masked.
    """
    if not isinstance(arg, str) or len(arg) <= LONGEST_SURVIVOR or clean_text == MASK:
        return arg
    return MASK if clean_text.count(arg) < text.count(arg) else arg


class _MaskedItems(dict[Any, Any]):
    """The masked items of a mapping that cannot be copied. Other keys are looked up in the original mapping.

    The original mapping might return a default for missing keys or accept multiple spellings of a key. Values from the
    original mapping are masked on lookup.
    """

    __slots__ = ("_look_up",)

    def __init__(self, items: Any, mapping: Any, clean: Clean) -> None:
        super().__init__(items)
        # The mapping is stored in a closure so that it does not appear in a repr.
        self._look_up: Callable[[Any], Any] = lambda key: _clean_named(key, mapping[key], clean)

    def __missing__(self, key: Any) -> Any:
        return self._look_up(key)


def _with_items(mapping: Any, items: Any, clean: Clean) -> Any:
    """Return a copy of a mapping argument with different items but the same behavior.

    In some servers' access logs, the argument is a ``dict`` subclass whose ``__getitem__`` returns ``-`` for missing
    keys.
    """
    if type(mapping) is dict:
        return items
    if not isinstance(mapping, dict) or isinstance(mapping, _MaskedItems):
        return _MaskedItems(items, mapping, clean)
    try:
        changed = copy.copy(mapping)
        # Copying an immutable mapping can return the same object. If a key contains a token, the copy and the masked
        # items have different keys.
        if changed is mapping or type(changed) is not type(mapping) or dict.keys(changed) != items.keys():
            return _MaskedItems(items, mapping, clean)
    except Exception:  # the mapping's class can raise any exception
        return _MaskedItems(items, mapping, clean)
    for key, value in items.items():
        dict.__setitem__(changed, key, value)
    return changed


def _is_clean(message: str, args: Any, clean: Clean) -> bool:
    try:
        text = message % args
    except Exception:
        return False
    return clean(text) is text


def _changed_traceback(record: logging.LogRecord, clean: Clean) -> dict[str, Any]:
    text = record.exc_text
    if not text and record.exc_info and record.exc_info[0] is not None:
        text = _exceptions.formatException(record.exc_info)
    if not text or (new := clean(text)) is text:
        return {}
    # If `exc_text` is set, a formatter uses it. Otherwise, the formatter formats the exception and prints the token.
    return {"exc_text": new, "exc_info": None}


def _masked(arg: Any) -> Any:
    return arg if arg is None or isinstance(arg, (int, float)) else MASK
