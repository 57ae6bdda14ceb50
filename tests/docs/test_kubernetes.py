"""The examples' manifests conform to their schemas, and ``otel-token-relay check`` accepts their settings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from otel_token_relay import Settings
from tests.docs.test_pages import Block, blocks_of, plain_environment
from tests.support import manifests
from tests.support.processes import ROOT

EXAMPLES = ROOT / "examples"
KUBERNETES = EXAMPLES / "kubernetes"
MANIFESTS = sorted(KUBERNETES.glob("*.yaml"))
COMPOSE = EXAMPLES / "compose" / "compose.yaml"
DOCKERFILE = KUBERNETES / "image" / "Dockerfile"


def of_kind(kind: str) -> dict[str, Any]:
    (found,) = [doc for path in MANIFESTS for doc in manifests.documents(path) if doc["kind"] == kind]
    return found


def container() -> dict[str, Any]:
    (found,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def environment_of_the_pod(tmp_path: Path) -> dict[str, str]:
    """Return the container's variables, with the projected token's file in *tmp_path*."""
    injected = {item["name"]: item["value"] for item in of_kind("Instrumentation")["spec"]["python"]["env"]}
    environ: dict[str, str] = of_kind("ConfigMap")["data"] | injected
    (mount,) = container()["volumeMounts"]
    token = tmp_path / Path(environ["OTEL_PYTHON_TOKEN_RELAY_CLIENT_ASSERTION_FILE"]).relative_to(mount["mountPath"])
    token.write_text("e30.e30.AAAA")
    return environ | {"OTEL_PYTHON_TOKEN_RELAY_CLIENT_ASSERTION_FILE": str(token)}


def check(environ: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "otel_token_relay", "check", "--strict", *options],
        env=plain_environment() | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_fit_the_schemas(path: Path) -> None:
    """Each document contains only fields that Kubernetes or the operator supports."""
    for document in manifests.documents(path):
        manifests.validate_kubernetes(document)


@pytest.mark.parametrize(
    ("kind", "place", "value"),
    [
        pytest.param("Deployment", ("spec", "replica"), 2, id="misspelled field"),
        pytest.param("ConfigMap", ("data", "OTEL_SAMPLER_RATIO"), 1, id="number in a ConfigMap"),
        pytest.param("Instrumentation", ("spec", "propagators"), ["token_relay"], id="unknown propagator"),
        pytest.param("Instrumentation", ("spec", "python", "resources"), {}, id="field of another language"),
    ],
)
def test_schemas_find_mistakes(kind: str, place: tuple[str, ...], value: object) -> None:
    """The schemas are strict, so they detect mistakes in a manifest."""
    document = of_kind(kind)
    *path, last = place
    inner = document
    for name in path:
        inner = inner[name]
    inner[last] = value

    with pytest.raises(jsonschema.ValidationError):
        manifests.validate_kubernetes(document)


def test_settings_of_the_config_map_have_no_problem(tmp_path: Path) -> None:
    """The settings have the intended values, and none is replaced by its strict value."""
    settings = Settings.from_env(environment_of_the_pod(tmp_path))

    assert settings.problems == ()
    assert [str(entry) for entry in settings.entries] == [
        "http://profile-service.shop.svc.cluster.local:8080",
        "https://billing.shop.svc.cluster.local:8443;required;audience=billing",
    ]
    assert settings.rejects
    assert settings.exchange_problem is None


def test_check_accepts_the_settings(tmp_path: Path) -> None:
    """The check reports that relaying and verification are enabled, without a warning."""
    ran = check(environment_of_the_pod(tmp_path), "--require", "relay,verify")

    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_check_rejects_a_misspelled_setting(tmp_path: Path) -> None:
    """The check fails if a setting is misspelled."""
    environ = environment_of_the_pod(tmp_path)
    environ["OTEL_PYTHON_TOKEN_RELAY_AUDIANCE"] = environ.pop("OTEL_PYTHON_TOKEN_RELAY_AUDIENCE")

    assert check(environ).returncode == 1


def test_probes_need_no_token(tmp_path: Path) -> None:
    """Every path that the kubelet requests is excluded from verification."""
    excluded = Settings.from_env(environment_of_the_pod(tmp_path)).verify_exclude
    probes = [probe["httpGet"]["path"] for name, probe in container().items() if name.endswith("Probe")]

    assert len(probes) == 2
    assert set(probes) == set(excluded)


def test_projected_token_is_where_the_setting_says() -> None:
    """The volume contains the token's file, and the token's audience is the issuer that verifies the assertion."""
    settings = of_kind("ConfigMap")["data"]
    (volume,) = of_kind("Deployment")["spec"]["template"]["spec"]["volumes"]
    (source,) = volume["projected"]["sources"]
    (mount,) = container()["volumeMounts"]

    assert mount["name"] == volume["name"]
    path = f"{mount['mountPath']}/{source['serviceAccountToken']['path']}"
    assert settings["OTEL_PYTHON_TOKEN_RELAY_CLIENT_ASSERTION_FILE"] == path
    assert source["serviceAccountToken"]["audience"] == settings["OTEL_PYTHON_TOKEN_RELAY_ISSUERS"]


def test_operator_finds_the_resource() -> None:
    """The pod's annotation refers to the Instrumentation resource."""
    annotations = of_kind("Deployment")["spec"]["template"]["metadata"]["annotations"]

    name = of_kind("Instrumentation")["metadata"]["name"]
    assert annotations["instrumentation.opentelemetry.io/inject-python"] == name


PAGE = ROOT / "docs" / "kubernetes.md"


@pytest.mark.parametrize(
    "block", [block for block in blocks_of(PAGE) if block.language == "yaml"], ids=lambda block: f"line {block.line}"
)
def test_page_shows_parts_of_the_manifests(block: Block) -> None:
    """Each YAML block on the page appears verbatim in one of the manifests."""
    assert any(block.text in path.read_text("utf-8") for path in MANIFESTS)


# Container image


def test_dockerfile_passes_hadolint() -> None:
    """The linter reports no problem at its strictest level."""
    ran = subprocess.run(
        [str(manifests.hadolint()), "--failure-threshold", "style", "--no-color", str(DOCKERFILE)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ran.stdout + ran.stderr == ""
    assert ran.returncode == 0


def test_tests_inject_what_the_image_contains() -> None:
    """The tests in tests/injected install the versions from the image's requirements."""
    text = (DOCKERFILE.parent / "requirements.txt").read_text("utf-8")
    lines = {line for line in text.splitlines() if not line.startswith("#")}
    locked = set(re.findall(r"^\S+==\S+", (ROOT / "tests/support/injected/image.txt").read_text("utf-8"), re.MULTILINE))

    (own,) = lines - locked
    assert re.fullmatch(r"otel-token-relay\[verify,exchange\]==[\d.]+", own)


def test_image_has_no_exporter_that_needs_protobuf() -> None:
    """The Instrumentation resource selects the exporter that the image contains."""
    requirements = (DOCKERFILE.parent / "requirements.txt").read_text("utf-8")
    selected = {i["value"] for i in of_kind("Instrumentation")["spec"]["python"]["env"] if "EXPORTER" in i["name"]}

    assert selected == {"otlp_json_http"}
    assert "opentelemetry-exporter-otlp-json-http==" in requirements
    assert "proto-http" not in requirements


# Compose


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]
    return found


def test_compose_file_fits_the_specification() -> None:
    """The Compose file contains only fields of the Compose specification."""
    manifests.validate_compose(yaml.safe_load(COMPOSE.read_text("utf-8")))


def test_schema_of_compose_finds_mistakes() -> None:
    """The schema of the Compose specification detects a misspelled field."""
    document = yaml.safe_load(COMPOSE.read_text("utf-8"))
    document["services"]["user-service"]["environ"] = {}

    with pytest.raises(jsonschema.ValidationError):
        manifests.validate_compose(document)


def test_check_accepts_the_settings_of_compose() -> None:
    """The settings in the Compose file have no problem, and the entry is the service's address in the network."""
    environ: dict[str, str] = services()["user-service"]["environment"]
    settings = Settings.from_env(environ)

    assert settings.problems == ()
    assert [str(entry) for entry in settings.entries] == [environ["PROFILE_SERVICE"]]
    assert environ["PROFILE_SERVICE"].startswith("http://profile-service:")
    assert "profile-service" in services()
    ran = check(environ, "--require", "relay")
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_programs_of_compose_exist() -> None:
    """Each command in the Compose file serves a module in the build context."""
    for service in services().values():
        folder = Path(os.path.normpath(COMPOSE.parent / service["build"]["context"]))
        (app,) = [word for word in service["command"] if word.endswith(":app")]
        assert (folder / f"{app.removesuffix(':app')}.py").exists()


def test_inline_dockerfile_passes_hadolint(tmp_path: Path) -> None:
    """The linter reports only that the example's package has no version."""
    (text,) = {service["build"]["dockerfile_inline"] for service in services().values()}
    (tmp_path / "Dockerfile").write_text(text)
    ran = subprocess.run(
        [str(manifests.hadolint()), "--no-color", "--ignore", "DL3013", str(tmp_path / "Dockerfile")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ran.stdout == ""
