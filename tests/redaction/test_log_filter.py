"""The filter for logging handlers masks records and keeps their structure."""

from __future__ import annotations

import base64
import logging
from collections import OrderedDict, UserDict
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import pytest

from otel_token_relay import Settings, use_token
from otel_token_relay.redaction import RedactingFilter, known_tokens
from otel_token_relay.redaction.scrubber import FAILED, MASK
from tests.redaction.corpus import FOREIGN_JWT, OWN_OPAQUE
from tests.redaction.pipeline import leaks


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.lines.append(self.format(record))


@pytest.fixture
def lines() -> Iterator[tuple[logging.Logger, Lines]]:
    handler = Lines()
    handler.addFilter(RedactingFilter(Settings()))
    logger = logging.Logger("test.filter")  # noqa: LOG001  # not shared with other loggers
    logger.addHandler(handler)
    yield logger, handler
    known_tokens.stop_listening()


def test_the_filter_keeps_the_number_and_types_of_arguments(lines):
    """uvicorn's access formatter unpacks five arguments and compares the last one with numbers, so all must be kept."""
    logger, handler = lines
    arguments = ("10.0.0.1:99", "GET", f"/me?access_token={OWN_OPAQUE}", "1.1", 200)

    logger.info('%s - "%s %s HTTP/%s" %d', *arguments)

    masked = handler.records[0].args
    assert masked == ("10.0.0.1:99", "GET", f"/me?access_token={MASK}", "1.1", 200)
    assert [type(arg) for arg in masked] == [str, str, str, str, int]
    assert handler.lines == [f'10.0.0.1:99 - "GET /me?access_token={MASK} HTTP/1.1" 200']


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        (f"got {OWN_OPAQUE}", ()),
        ("got %s", (OWN_OPAQUE,)),
        ("got %s", (ValueError(OWN_OPAQUE),)),
        ("got %(a)s", ({"a": OWN_OPAQUE},)),
        ("Bearer %s for %d", ("2YotnFZFEjr1zCsicMWpAA", 3)),
        ("%s%s", (OWN_OPAQUE[:20], OWN_OPAQUE[20:])),
        ("got %r", ([OWN_OPAQUE, {"x": OWN_OPAQUE}],)),
    ],
    ids=["message", "argument", "object", "mapping", "only-together", "halves", "nested"],
)
def test_the_filter_masks_messages_and_arguments(lines, message, arguments):
    """The formatted line contains no token, regardless of the token's position in the record."""
    logger, handler = lines

    with use_token(OWN_OPAQUE):
        logger.warning(message, *arguments)

    assert len(handler.lines) == 1
    assert not leaks(OWN_OPAQUE, handler.lines[0].encode())
    assert "2YotnFZ" not in handler.lines[0]
    assert MASK in handler.lines[0]


def test_the_filter_masks_tracebacks_and_extras(lines):
    """The filter masks tokens in the exception's text and in the record's extra fields."""
    logger, handler = lines

    with use_token(OWN_OPAQUE):
        try:
            raise ValueError(f"bad {OWN_OPAQUE}")
        except ValueError:
            logger.exception("failed", extra={"user_header": f"Bearer {OWN_OPAQUE}", "n": 3})

    record = handler.records[0]
    assert not leaks(OWN_OPAQUE, handler.lines[0].encode())
    assert "Traceback" in handler.lines[0]
    assert not leaks(OWN_OPAQUE, repr(record.__dict__).encode())
    assert record.n == 3


@pytest.mark.parametrize("name", ["threadName", "taskName", "processName", "funcName", "name"])
def test_the_filter_masks_names(name):
    """The filter masks a token in the name of a thread, a task, a process, a function, or a logger."""
    record = logging.makeLogRecord({"msg": "x", name: f"for {OWN_OPAQUE}"})

    with use_token(OWN_OPAQUE):
        masked = RedactingFilter(Settings()).filter(record)

    assert getattr(record if masked is True else masked, name) == f"for {MASK}"


def test_the_filter_does_not_change_a_clean_record(lines):
    """The filter returns a clean record and its arguments as the same objects."""
    logger, handler = lines
    arguments = ("a", 1, ["x"])

    logger.info("%s %d %s", *arguments)

    assert handler.records[0].args is not None
    assert all(new is old for new, old in zip(handler.records[0].args, arguments, strict=True))
    assert handler.lines == ["a 1 ['x']"]


class Atoms(dict):
    """Access-log arguments as gunicorn and hypercorn pass them, with ``-`` for absent keys."""

    def __getitem__(self, key):
        return dict.get(self, key.lower(), "-")


class Elsewhere(dict):
    """A mapping that reads its values from an attribute."""

    def __init__(self, value):
        super().__init__(r="")
        self.value = value

    def __getitem__(self, key):
        return self.value


def test_a_mapping_argument_keeps_its_class(lines):
    """A mapping argument keeps its class, so a line with an absent key is written and its token is masked."""
    logger, handler = lines
    atoms = Atoms(r="GET /?access_token=kq3Zt9vX0aPl")

    logger.error('%(gone)s "%(R)s"', atoms)

    assert handler.lines == [f'- "GET /?access_token={MASK}"']
    assert type(handler.records[0].args) is Atoms
    assert atoms == {"r": "GET /?access_token=kq3Zt9vX0aPl"}


def test_a_token_in_two_parts_of_a_mapping_is_masked(lines):
    """A token is masked even if the message and the arguments each contain only a part of it."""
    logger, handler = lines

    logger.error("Authorization: Bearer %(a)s %(gone)s", Atoms(a=OWN_OPAQUE))

    assert handler.lines == [f"Authorization: Bearer {MASK} -"]


def test_a_mapping_that_takes_its_values_from_elsewhere_is_written_masked(lines):
    """The formatted text is cleaned if a mapping reads its values from elsewhere."""
    logger, handler = lines

    logger.error("Authorization: Bearer %(r)s", Elsewhere(OWN_OPAQUE))

    assert handler.lines[-1] == f"Authorization: Bearer {MASK}"


class Immutable(dict):
    """A mapping whose copy is the mapping itself."""

    def __copy__(self):
        return self


class Uncopyable(dict):
    """A mapping whose items cannot be set."""

    def __setitem__(self, key, value):
        raise TypeError("immutable")


@pytest.mark.parametrize("kind", [Immutable, Uncopyable, OrderedDict])
def test_the_mapping_of_the_application_is_never_modified(lines, kind):
    """The filter masks a copy and never modifies the application's mapping."""
    logger, handler = lines
    given = kind(r="?access_token=kq3Zt9vX0aPl", n=1)

    logger.error("%(r)s %(n)d", given)

    assert handler.lines == [f"?access_token={MASK} 1"]
    assert list(handler.records[0].args.items()) == [("r", f"?access_token={MASK}"), ("n", 1)]
    assert given == {"r": "?access_token=kq3Zt9vX0aPl", "n": 1}


class Headers(Mapping):
    """A case-insensitive mapping that is not a ``dict`` and returns ``-`` for absent keys."""

    def __init__(self, **items):
        self.items_ = items

    def __getitem__(self, key):
        return self.items_.get(key.lower(), "-")

    def __iter__(self):
        return iter(self.items_)

    def __len__(self):
        return len(self.items_)


class ImmutableAtoms(Atoms):
    """Access-log arguments whose copy is the mapping itself."""

    def __copy__(self):
        return self


class Slotted(Atoms):
    """Access-log arguments that cannot be copied."""

    def __copy__(self):
        raise RuntimeError("no copies")


class Defaults(UserDict):
    """A ``UserDict`` with a default value."""

    def __missing__(self, key):
        return self.data.get(key.lower(), "-")


@pytest.mark.parametrize("kind", [Headers, ImmutableAtoms, Slotted, Defaults])
def test_a_mapping_that_cannot_be_copied_answers_for_absent_keys(lines, kind):
    """A log line with an uncopyable mapping is written, and the values of absent keys are masked."""
    logger, handler = lines
    given = kind(r="GET /?access_token=kq3Zt9vX0aPl", h=f"Bearer {OWN_OPAQUE}", s="a")

    logger.error('%(gone)s "%(R)s" "%(H)s" %(r)s %(s)s', given)

    path = f"GET /?access_token={MASK}"
    assert handler.lines == [f'- "{path}" "Bearer {MASK}" {path} a']
    assert OWN_OPAQUE not in repr(vars(handler.records[0]))
    assert given["R"] == "GET /?access_token=kq3Zt9vX0aPl"


def test_a_key_that_the_mapping_does_not_have_raises_the_same_error(lines):
    """A missing key raises the same error as without the filter, so the application can see its mistake."""
    logger, handler = lines

    with pytest.raises(KeyError, match="gone"):
        logger.error("%(gone)s %(r)s", MappingProxyType({"r": f"Bearer {OWN_OPAQUE}"}))

    assert handler.lines == []


class Unreadable(Headers):
    """A mapping that can be read only during a request, like a framework's proxy object."""

    def __iter__(self):
        raise RuntimeError("working outside of a request")


def test_a_record_that_cannot_be_cleaned_is_written_without_its_data(lines):
    """If the arguments cannot be read, the line is written without the message, the extra fields, and the traceback."""
    logger, handler = lines
    given = Unreadable(r=f"GET /{OWN_OPAQUE}")

    try:
        raise ValueError(f"bad {OWN_OPAQUE}")
    except ValueError:
        logger.exception("%(r)s", given, extra={"user_header": f"Bearer {OWN_OPAQUE}"}, stack_info=True)

    assert handler.lines == [FAILED]
    record = handler.records[0]
    assert (record.levelname, record.user_header) == ("ERROR", FAILED)
    assert not leaks(OWN_OPAQUE, repr(vars(record)).encode())
    assert given["r"] == f"GET /{OWN_OPAQUE}"


def test_a_record_that_cannot_be_cleaned_keeps_the_number_of_its_arguments():
    """The line is written, and a formatter that unpacks the arguments, such as uvicorn's, still works."""
    arguments = ("10.0.0.1", OWN_OPAQUE, 200)
    record = logging.makeLogRecord({"msg": "%s asked for %s: %d", "args": arguments, "exc_info": ValueError()})

    masked = RedactingFilter().filter(record)
    written = masked if isinstance(masked, logging.LogRecord) else record

    assert written.getMessage() == FAILED
    assert written.args == (FAILED, FAILED, 200)


def test_a_record_that_cannot_be_cleaned_keeps_only_plain_numbers():
    """A subclass of a number might have any text, or might raise an error when it is formatted."""

    class Number(int):
        def __str__(self):
            return OWN_OPAQUE

    class Broken(float):
        def __str__(self):
            raise RuntimeError("working outside of a request")

    arguments = (Number(7), Broken(0.5), 200, True)
    record = logging.makeLogRecord({"msg": "%s %s %d %s", "args": arguments, "exc_info": ValueError()})

    masked = RedactingFilter().filter(record)
    written = masked if isinstance(masked, logging.LogRecord) else record

    assert written.getMessage() == FAILED
    assert written.args == (FAILED, FAILED, 200, True)


JWE = ".".join(
    ["eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ", "OKOawDo13gRp2ojaHV7LFpZcgV7T6DVZKTyKOMTYUmKoTCVJRgckCL9k"]
)
JWE += ".48V1_ALb6US04U3b.5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX.XFBoMYUZodetZdvTiFvSkQ"


@pytest.mark.parametrize(("token", "at"), [(FOREIGN_JWT, 1), (FOREIGN_JWT, 2), (JWE, 1), (JWE, 2), (JWE, 3), (JWE, 4)])
@pytest.mark.parametrize("form", ["tuple", "mapping", "object", "other mapping"])
def test_a_jwt_that_is_split_over_two_arguments_is_masked(lines, token, at, form):
    """A JWT that is split across two arguments is masked completely, even if the first part is a JWT by itself."""
    logger, handler = lines
    parts = token.split(".")
    first, second = ".".join(parts[:at]), ".".join(parts[at:])
    if form == "tuple":
        logger.info("%s %s.%s for %d", "a harmless argument", first, second, 7)
    elif form == "object":
        logger.info(ValueError("%s %s.%s for %d"), "a harmless argument", first, second, 7)
    else:
        values = {"w": "a harmless argument", "a": first, "b": second, "n": 7}
        logger.info("%(w)s %(a)s.%(b)s for %(n)d", values if form == "mapping" else MappingProxyType(values))

    assert not [part for part in parts if len(part) > 16 and part in handler.lines[0]]
    assert not [part for part in parts if len(part) > 16 and part in repr(vars(handler.records[0]))]
    assert handler.lines[0].startswith(f"a harmless argument {MASK}")
    assert handler.lines[0].endswith(" for 7")


def test_only_the_encoded_argument_is_masked(lines):
    """An argument that contains an encoded token is masked completely, and the rest of the line remains unchanged."""
    logger, handler = lines
    coded = base64.b64encode(f"a:{OWN_OPAQUE}".encode()).decode()

    with use_token(OWN_OPAQUE):
        logger.info('%s - "%s %s HTTP/%s" %d', "the address of a client", "GET", f"/{coded}", "1.1", 200)

    assert handler.lines == [f'the address of a client - "GET {MASK} HTTP/1.1" 200']
