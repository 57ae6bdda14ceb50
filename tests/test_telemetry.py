"""docs/telemetry.yaml describes every attribute and metric of the package and nothing else."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml

import otel_token_relay
from otel_token_relay import counters, decisions, verifications
from otel_token_relay.configured_authenticator import CANNOT_START
from otel_token_relay.errors import RejectReason
from otel_token_relay.exchange import engine
from otel_token_relay.reasons import Reason

PACKAGE = Path(otel_token_relay.__file__).parent
REGISTRY = yaml.safe_load((Path(__file__).parents[1] / "docs" / "telemetry.yaml").read_text("utf-8"))
GROUPS: dict[str, dict[str, Any]] = {group["id"]: group for group in REGISTRY["groups"]}
ATTRIBUTES = {item["id"]: item for item in GROUPS["registry.token_relay"]["attributes"]}
# Attributes from OpenTelemetry's own registry that the package's metrics use.
FOREIGN = {"server.address", "error.type"}

# The parts of ``schemas/semconv.schema.json`` (open-telemetry/weaver) that the package's groups use, without
# unknown fields.
_LEVEL = {
    "oneOf": [
        {"enum": ["required", "recommended", "opt_in"]},
        {
            "type": "object",
            "required": ["conditionally_required"],
            "additionalProperties": False,
            "properties": {"conditionally_required": {"type": "string"}},
        },
    ]
}
_STABILITY = {"enum": ["stable", "development", "alpha", "beta", "release_candidate"]}
_MEMBER = {
    "type": "object",
    "required": ["id", "value", "stability"],
    "additionalProperties": False,
    "properties": {
        "id": {"type": "string"},
        "value": {"type": "string"},
        "brief": {"type": "string"},
        "stability": _STABILITY,
    },
}
_DEFINITION = {
    "type": "object",
    "required": ["id", "type", "brief", "stability"],
    "additionalProperties": False,
    "properties": {
        "id": {"type": "string"},
        "brief": {"type": "string"},
        "note": {"type": "string"},
        "stability": _STABILITY,
        "examples": {"type": "array", "items": {"type": "string"}},
        "type": {
            "oneOf": [
                {"const": "string"},
                {
                    "type": "object",
                    "required": ["members"],
                    "additionalProperties": False,
                    "properties": {"members": {"type": "array", "items": _MEMBER}},
                },
            ]
        },
    },
    # Examples are optional only for enums.
    "if": {"properties": {"type": {"const": "string"}}},
    "then": {"required": ["examples"]},
}
_REFERENCE = {
    "type": "object",
    "required": ["ref"],
    "additionalProperties": False,
    "properties": {"ref": {"type": "string"}, "note": {"type": "string"}, "requirement_level": _LEVEL},
}


def _group(kind: str, item: dict[str, Any], required: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["id", "type", "brief", "attributes", *required, *more],
        "additionalProperties": False,
        "properties": {
            "id": {"type": "string"},
            "type": {"const": kind},
            "brief": {"type": "string"},
            "display_name": {"type": "string"},
            "stability": _STABILITY,
            "attributes": {"type": "array", "items": item},
            **more,
        },
    }


SCHEMA = {
    "type": "object",
    "required": ["groups"],
    "additionalProperties": False,
    "properties": {
        "groups": {
            "type": "array",
            "items": {
                "oneOf": [
                    _group("attribute_group", _DEFINITION),
                    _group("span", _REFERENCE, ("stability",), span_kind={"enum": ["client", "server"]}),
                    _group(
                        "metric",
                        _REFERENCE,
                        ("stability",),
                        metric_name={"type": "string"},
                        instrument={"enum": ["counter", "histogram"]},
                        unit={"type": "string"},
                    ),
                ]
            },
        }
    },
}


def names_in_the_code() -> set[str]:
    """Return each string in the package that looks like one of its telemetry names."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.update(re.findall(r"^token_relay(?:\.[a-z_]+)+$", node.value))
    return found


def members(attribute: str) -> set[str]:
    values = [member["value"] for member in ATTRIBUTES[attribute]["type"]["members"]]
    assert len(values) == len(set(values))
    return set(values)


def references(group: str) -> set[str]:
    return {item["ref"] for item in GROUPS[group]["attributes"]}


def test_file_is_a_registry() -> None:
    """The file has the format that weaver reads."""
    jsonschema.validate(REGISTRY, SCHEMA, cls=jsonschema.Draft202012Validator)


def test_every_name_of_the_code_is_described_and_no_other() -> None:
    """The attributes and metrics in the code and in the registry are the same."""
    metrics = {group["metric_name"] for group in GROUPS.values() if group["type"] == "metric"}

    assert names_in_the_code() == set(ATTRIBUTES) | metrics


def test_references_are_defined() -> None:
    """Spans and metrics refer only to attributes of this registry or of OpenTelemetry's, and every attribute is
    used.
    """
    used = set().union(*(references(name) for name, group in GROUPS.items() if group["type"] != "attribute_group"))

    assert used == set(ATTRIBUTES) | FOREIGN
    assert {decisions.ADDRESS_ATTRIBUTE} <= FOREIGN


@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        pytest.param(decisions.DECISION_ATTRIBUTE, get_args(decisions.Outcome), id="decisions"),
        pytest.param(decisions.EXCHANGE_ATTRIBUTE, get_args(decisions.ExchangeResult), id="exchange results"),
        pytest.param(verifications.OUTCOME_ATTRIBUTE, get_args(verifications.Outcome), id="verifications"),
        pytest.param(
            decisions.REASON_ATTRIBUTE,
            (
                *(reason.value for reason in Reason),
                *get_args(RejectReason),
                *("insufficient_scope", "insufficient_user_authentication", "unavailable", CANNOT_START),
            ),
            id="reasons",
        ),
    ],
)
def test_members_are_the_closed_sets(attribute: str, values: tuple[str, ...]) -> None:
    """The enums contain exactly the values that the code can set."""
    assert members(attribute) == set(values)


@pytest.mark.parametrize(
    ("instrument", "kind"),
    [
        pytest.param(decisions.DecisionRecorder()._counter, "counter", id="decisions"),
        pytest.param(verifications.VerificationRecorder("enforce")._counter, "counter", id="verifications"),
        pytest.param(engine._duration, "histogram", id="exchange"),
    ],
)
def test_metrics_are_described_as_they_are_created(
    instrument: counters.LazyCounter | counters.LazyHistogram, kind: str
) -> None:
    """The registry describes each metric with the name, unit, description, and kind that the code uses."""
    group = GROUPS[f"metric.{instrument._name}"]

    assert (group["metric_name"], group["unit"], group["brief"], group["instrument"]) == (
        instrument._name,
        instrument._unit,
        instrument._description,
        kind,
    )
