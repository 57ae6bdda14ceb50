"""Each format of OpenTelemetry's configuration file can be read."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from otel_token_relay.configuration_file import ConfigurationFile, Section, read_configuration_file

INSTRUMENTATION = "instrumentation/development.python.token_relay"
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def read(tmp_path: Path, text: str | bytes, name: str = "otel.yaml", **environ: str) -> ConfigurationFile:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_configuration_file({"OTEL_CONFIG_FILE": str(path), **environ})


@pytest.mark.parametrize("name", ["", "  "])
def test_without_the_variable_there_is_no_file(name: str) -> None:
    """No file is read if the variable is unset or blank."""
    assert read_configuration_file({"OTEL_CONFIG_FILE": name}) == ConfigurationFile()
    assert read_configuration_file({}) == ConfigurationFile()


def test_both_places_are_read_in_order(tmp_path: Path) -> None:
    """Both sections of the file are read, and the instrumentation's section overrides the propagator's."""
    text = """
propagator: {composite: [{tracecontext: null}, {token_relay: {max_age: 1}}]}
instrumentation/development: {python: {token_relay: {max_age: 2}, flask: {}}, java: {token_relay: {max_age: 3}}}
"""
    assert read(tmp_path, text) == ConfigurationFile(
        (Section(INSTRUMENTATION, {"max_age": 2}), Section("propagator.composite[1].token_relay", {"max_age": 1})),
        names_propagator=True,
    )


@pytest.mark.parametrize(
    ("text", "is_named"),
    [
        ("propagator: {composite: [{token_relay: null}]}", True),
        ("propagator: {composite: [{token_relay: {}}]}", True),
        ("propagator: {composite_list: 'tracecontext, token_relay'}", True),
        ("propagator: {composite_list: '${LIST}'}", True),
        ("propagator: {composite_list: 'tracecontext,token_relays'}", False),
        ("propagator: {composite: [{tracecontext: null}]}", False),
        ("instrumentation/development: {python: {token_relay: {}}}", False),
        ("disabled: true\npropagator: {composite: [{token_relay: {}}]}", True),
        ("propagator: {composite: token_relay}", False),
        ("propagator: [token_relay]", False),
        ("[token_relay]", False),
        ("", False),
    ],
)
def test_the_file_may_name_the_propagator(tmp_path: Path, text: str, is_named: bool) -> None:
    """Either list of propagators in the file enables the relay, even if the SDK is disabled."""
    assert read(tmp_path, text, LIST="token_relay").names_propagator == is_named


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("${A}", "a"),
        ("${env:A}", "a"),
        ("x${A}y${B:-b}z", "xaybz"),
        ("${B}", ""),
        ("${B:-}", ""),
        ("${EMPTY:-b}", "b"),
        ("${EMPTY}", ""),
        ("$${A}", "${A}"),
        ("$A", "$A"),
        ("${A", "${A"),
        ("${1A}", "${1A}"),
    ],
)
@pytest.mark.parametrize("name", ["otel.yaml", "otel.yml", "otel.json"])
def test_environment_variables_are_substituted_in_values_only(
    tmp_path: Path, written: str, read_as: str, name: str
) -> None:
    """Environment variables are substituted only in values, never in keys or in substituted values."""
    section = {"header": written, "destinations": [written, {"origin": written}], written: 1}
    text = json.dumps({"instrumentation/development": {"python": {"token_relay": section}}})

    (found,) = read(tmp_path, text, name, A="a", EMPTY="").sections

    assert found.content == {"header": read_as, "destinations": [read_as, {"origin": read_as}], written: 1}


@pytest.mark.parametrize(
    ("text", "path", "meant"),
    [
        ("propagator: {composite: [{a: 1}, {token-relay: 2}]}", "propagator.composite[1].token-relay", None),
        ("propagator: {composite: [{Token_Relay: 2}]}", "propagator.composite[0].Token_Relay", None),
        ("instrumentation: {python: {token_relay: 2}}", "instrumentation.python.token_relay", INSTRUMENTATION),
        ("instrumentation/dev: {python: {token_relay: 2}}", "instrumentation/dev.python.token_relay", INSTRUMENTATION),
        (
            "instrumentation/development: {pyton: {tokenrelay: 2}}",
            "instrumentation/development.pyton.tokenrelay",
            INSTRUMENTATION,
        ),
    ],
)
def test_misspelled_sections_are_found(tmp_path: Path, text: str, path: str, meant: str | None) -> None:
    """A misspelled section, which OpenTelemetry ignores, is reported."""
    file = read(tmp_path, text)

    assert file.sections == ()
    assert file.misspelled == ((Section(path, 2), meant or f"{path.rpartition('.')[0]}.token_relay"),)


@pytest.mark.parametrize(
    "text",
    [
        "instrumentation/development: {java: {token_relay: {}}, python: {flask: {}, 5: {}, token_relay: {}}}",
        "propagator: {composite: [{token_relay: {}}, {b3: {}}, 5, {5: {}}, tokenrelay]}",
        "{resource: {python: {token-relay: {}}}, 5: 6, instrumentation: [python]}",
    ],
)
def test_other_sections_are_not_misspelled(tmp_path: Path, text: str) -> None:
    """A section for other OpenTelemetry components is not reported as misspelled."""
    assert read(tmp_path, text).misspelled == ()


@pytest.mark.parametrize("name", ["otel.yaml", "otel.json"])
def test_duplicate_keys_are_found(tmp_path: Path, name: str) -> None:
    """A duplicate key is reported, because a parser silently keeps only the last value."""
    text = """{"instrumentation/development": {"python": {"token_relay": {
        "verify": "enforce", "verify": "off",
        "destinations": [{"origin": "https://a"}, {"origin": "https://b", "audience": "b", "audience": "c"}]}}}}"""

    (section,) = read(tmp_path, text, name).sections

    assert section.duplicates == ("verify", "destinations[1].audience")


def test_anchors_and_merge_keys_are_not_duplicates(tmp_path: Path) -> None:
    """Anchors and merge keys, which YAML uses to override values, are not reported as duplicates."""
    text = """
x: &base {max_age: 1, linger: 2}
instrumentation/development: {python: {token_relay: {<<: *base, max_age: 3}}}
"""
    (section,) = read(tmp_path, text).sections

    assert section == Section(INSTRUMENTATION, {"max_age": 3, "linger": 2})


def test_a_mapping_that_contains_itself_ends(tmp_path: Path) -> None:
    """Reading a mapping that contains itself, which YAML aliases can create, ends."""
    text = "instrumentation/development: {python: {token_relay: &a {destinations: [*a]}}}"

    (section,) = read(tmp_path, text).sections

    assert isinstance(section.content, dict)


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        (b"a: [token_relay", "otel.yaml", "cannot be parsed (ParserError on line 1)"),
        (b"a: 1\n\ttoken_relay: 2", "otel.yaml", "cannot be parsed (ScannerError on line 2)"),
        (b"a: !!python/object:token_relay {}", "otel.yaml", "cannot be parsed (ConstructorError on line 1)"),
        (b"? {token_relay: 1}\n: 2", "otel.yaml", "cannot be parsed"),
        (b'{"a": token_relay}', "otel.json", "cannot be parsed (JSONDecodeError on line 1)"),
        (b"token_relay: \xff", "otel.yaml", "is not valid UTF-8"),
        ("token_relay: 1".encode("utf-16"), "otel.yaml", "is not valid UTF-8"),
        (b"token_relay: " + b"[" * 3000, "otel.yaml", "nested too deeply"),
        (b"token_relay" + b" " * (4 * 1024 * 1024), "otel.yaml", "larger than 4 MiB"),
    ],
)
def test_a_file_that_may_contain_settings_is_a_problem(tmp_path: Path, content: bytes, name: str, reason: str) -> None:
    """The problem for an unreadable file with possible settings contains the line number but no quotation from the
    file.
    """
    found = read(tmp_path, content, name)

    assert found.problem is not None
    assert reason in found.problem
    assert "token_relay" not in found.problem
    assert found.is_unknown


def test_a_file_about_something_else_is_not_strict(tmp_path: Path) -> None:
    """An unreadable file without settings for this package does not make the settings strict."""
    found = read(tmp_path, "a: [b")

    assert found.problem is not None
    assert not found.is_unknown


@pytest.mark.parametrize("name", ["/nonexistent/otel.yaml", "/", "otel\0.yaml", "/dev/null/x", "/dev/zero"])
def test_a_file_that_cannot_be_opened_is_unknown(name: str) -> None:
    """A file that cannot be opened is treated as a file that might contain any setting."""
    found = read_configuration_file({"OTEL_CONFIG_FILE": name})

    assert found.problem is not None
    assert found.is_unknown


def test_a_pipe_does_not_stop_the_start(tmp_path: Path) -> None:
    """A named pipe in place of the file does not block the startup."""
    os.mkfifo(tmp_path / "otel.yaml")

    found = read_configuration_file({"OTEL_CONFIG_FILE": str(tmp_path / "otel.yaml")})

    assert found.problem == "it is not a regular file"


def test_yaml_without_its_parser_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the YAML parser is missing, the problem contains its package name, and JSON files can still be read."""
    monkeypatch.setitem(sys.modules, "yaml", None)

    assert "pip install opentelemetry-configuration" in str(read(tmp_path, "token_relay: 1").problem)
    assert read(tmp_path, "{}", "otel.json") == ConfigurationFile()


@settings(deadline=None, max_examples=60)
@given(document=JSON_VALUES, section=JSON_VALUES)
def test_no_document_raises(tmp_path_factory: pytest.TempPathFactory, document: Any, section: Any) -> None:
    """No document raises an error, so the application starts with any file."""
    folder = tmp_path_factory.mktemp("files")
    read(folder, json.dumps(document), "otel.json")
    whole = {"propagator": {"composite": [{"token_relay": section}]}}
    for text, name in ((json.dumps(whole), "otel.json"), (yaml.safe_dump(whole, allow_unicode=True), "otel.yaml")):
        assert read(folder, text, name).names_propagator
