"""Third-party schemas and a linter that check the manifests of the examples without network access.

`installed.manifests` installs their data and the hadolint program, without other dependencies.
"""

from __future__ import annotations

import json
import platform
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from referencing import Registry, Resource

from tests.support import installed

KUBERNETES = "v1.37.0-local-strict"

# The fields that the resource uses from ``apis/v1alpha1/instrumentation_types.go`` and ``propagators.go`` of the
# operator (open-telemetry/opentelemetry-operator). An environment variable is a built-in Kubernetes type.
INSTRUMENTATION: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "opentelemetry.io/v1alpha1"},
        "kind": {"const": "Instrumentation"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "exporter": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"endpoint": {"type": "string"}, "tls": {"type": "object"}},
                },
                "propagators": {
                    "type": "array",
                    "items": {
                        "enum": ["tracecontext", "baggage", "b3", "b3multi", "jaeger", "xray", "ottrace", "none"]
                    },
                },
                "env": {"$ref": "#/$defs/env"},
                "python": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "image": {"type": "string"},
                        "volumeLimitSize": {"type": "string"},
                        "env": {"$ref": "#/$defs/env"},
                        "resourceRequirements": {
                            "$ref": "/api/_definitions.json#/$defs/io.k8s.api.core.v1.ResourceRequirements"
                        },
                    },
                },
            },
        },
    },
    "$defs": {
        "env": {"type": "array", "items": {"$ref": "/api/_definitions.json#/$defs/io.k8s.api.core.v1.EnvVar"}},
    },
}


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the documents in a YAML file."""
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def validate_kubernetes(document: dict[str, Any]) -> None:
    """Raise `jsonschema.ValidationError` unless the Kubernetes API server accepts the fields of *document*."""
    schemas = installed.manifests() / "kubernetes_validate" / "kubernetes-json-schema" / KUBERNETES
    if document["kind"] == "Instrumentation":
        schema = INSTRUMENTATION
    else:
        group, _, version = document["apiVersion"].rpartition("/")
        name = "-".join(filter(None, (document["kind"].lower(), group, version)))
        schema = json.loads((schemas / f"{name}.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(schema, registry=_definitions(schemas)).validate(document)


@cache
def _definitions(schemas: Path) -> Registry[Any]:
    content = json.loads((schemas / "_definitions.json").read_text("utf-8"))
    resource: Resource[Any] = Resource.from_contents(content, default_specification=jsonschema_specification())
    return Registry().with_resource("/api/_definitions.json", resource)


def jsonschema_specification() -> Any:
    """Return the JSON Schema version of the definitions, which do not declare it."""
    from referencing.jsonschema import DRAFT202012

    return DRAFT202012


def validate_compose(document: dict[str, Any]) -> None:
    """Raise `jsonschema.ValidationError` unless *document* follows the Compose specification."""
    vendor = installed.manifests() / "check_jsonschema" / "builtin_schemas" / "vendor"
    schema = json.loads((vendor / "compose-spec.json").read_text("utf-8"))
    jsonschema.validators.validator_for(schema)(schema).validate(document)


def hadolint() -> Path:
    """Return the path of the Dockerfile linter."""
    if platform.system() != "Linux":
        pytest.skip("the pinned hadolint is a program for Linux")
    return installed.manifests() / "bin" / "hadolint"
