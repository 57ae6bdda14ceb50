"""Every block in the README and on the pages runs, and every name on them exists."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, get_args

import jsonschema
import pytest
from opentelemetry import propagate
from opentelemetry.configuration import load_config_file
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from otel_token_relay import Destination, Reason, Settings, errors, uninstall
from otel_token_relay.commands.activation import relay_problem
from otel_token_relay.configuration_file import read_configuration_file
from otel_token_relay.operator_log import DecisionLog
from otel_token_relay.origin import Origin
from otel_token_relay.policy import RelayPolicy
from otel_token_relay.settings import VARIABLES
from tests.support.processes import RELAY, instrumentations, unused_port
from tools.quickstarts import followed_pages

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "quickstarts").glob("*.md")])
READER = Sybil(parsers=[PythonCodeBlockParser()])
FILES = "https://github.com/otel-token-relay/otel-token-relay/blob/main/"  # the URL in [project.urls]
SECONDS_TO_START = 180  # a limit that is sufficient for two instrumented processes on a slow machine


class Block(NamedTuple):
    """A fenced code block on a page."""

    page: Path
    line: int
    language: str
    text: str


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found = re.finditer(r"^```([^\n]*)\n(.*?)^```[ ]*$", text, re.DOTALL | re.MULTILINE)
    return [Block(page, text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in found]


# A program follows these pages from beginning to end; see test_quickstarts.py.
FOLLOWED = followed_pages()
BLOCKS = [block for page in PAGES if page not in FOLLOWED for block in blocks_of(page)]
# The commands on this page require running services; see test_troubleshooting.py.
WITH_SERVICES = "troubleshooting.md"
# The blocks on this page are excerpts of manifests; see test_kubernetes.py.
MANIFESTS = "kubernetes.md"
# The demo takes seconds to run, so it is tested separately; see tests/demo/test_demo.py.
CONSOLE = [
    block
    for block in BLOCKS
    if block.language == "console" and block.page.name != WITH_SERVICES and "$ otel-token-relay demo" not in block.text
]


def name_of(value: object) -> str | None:
    if isinstance(value, Block):
        return f"{value.page.name}:{value.line}"
    return value.name if isinstance(value, Path) else None


def table_rows(text: str, columns: int) -> list[list[str]]:
    rows = [re.split(r" *(?<!\\)\| *", line.strip())[1:-1] for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if len(row) == columns][1:]


def code_spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.fixture
def restored() -> Iterator[None]:
    """Uninstall everything that a page installs, even if the page fails."""
    uninstall()
    textmap = propagate.get_global_textmap()
    yield
    uninstall()
    propagate.set_global_textmap(textmap)


# Code blocks


@pytest.mark.parametrize("block", BLOCKS, ids=name_of)
def test_every_block_is_of_a_tested_kind(block: Block) -> None:
    """Each fenced code block is in a language that a test covers."""
    assert block.language in {"python", "console", "sh", "yaml", "text"}


@pytest.mark.parametrize("page", [page for page in PAGES if page not in FOLLOWED], ids=name_of)
def test_every_fence_is_found(page: Path) -> None:
    """Each fence belongs to a block that was found, and no comment skips a block."""
    text = page.read_text("utf-8")

    assert len(re.findall(r"^\s*(```|~~~)", text, re.MULTILINE)) == 2 * len(blocks_of(page))
    assert not re.search(r"skip|invisible", " ".join(re.findall(r"<!--.*?-->", text, re.DOTALL)))


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "yaml" and block.page.name != MANIFESTS], ids=name_of
)
def test_configuration_files_are_read(block: Block, tmp_path: Path) -> None:
    """Each configuration file enables the relay, has no problem, and conforms to both schemas."""
    path = tmp_path / "otel.yaml"
    path.write_text(block.text)
    environ = {"OTEL_CONFIG_FILE": str(path)}

    assert Settings.load(environ).problems == ()
    assert relay_problem(environ) is None
    load_config_file(path)
    schema = json.loads(resources.files("otel_token_relay").joinpath("settings.schema.json").read_text("utf-8"))
    for section in read_configuration_file(environ).sections:
        jsonschema.validate(section.content, schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "text"], ids=name_of)
def test_log_lines_are_written_like_this(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    """Each log line has the format of the decision log and contains only defined values."""
    log = DecisionLog()
    for line in block.text.splitlines():
        start, _, pairs = line.partition(" otel-token-relay ")
        fields = dict(pair.split("=", 1) for pair in shlex.split(pairs))
        log.write(**fields)
        written = capsys.readouterr().err.rstrip("\n")
        assert len(start) == len(written.partition(" ")[0])
        assert written.partition(" otel-token-relay ")[2] == pairs
        assert fields["reason"] in {str(reason) for reason in Reason} | set(get_args(errors.RejectReason))


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_run(page: Path) -> None:
    """A page's Python blocks run in order and in the same namespace."""
    examples = list(READER.parse(page).examples())

    for example in examples:
        example.evaluate()

    assert len(examples) == sum(block.language == "python" for block in blocks_of(page))


def plain_environment() -> dict[str, str]:
    """Return the variables of a plain shell, with this environment's commands and without OpenTelemetry settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def sessions_of(block: Block) -> list[tuple[str, str]]:
    """Return each command in a console block together with its output on the page."""
    parts = re.split(r"^\$ (.*)\n", block.text, flags=re.MULTILINE)
    assert parts[0] == "", "a console block must start with a command"
    return list(zip(parts[1::2], parts[2::2], strict=True))


def assert_shows(command: str, shown: str, got: str) -> None:
    same = doctest.OutputChecker().check_output(shown, got, doctest.ELLIPSIS)
    assert same, f"$ {command}\n{got}\nexpected\n{shown}"


@pytest.mark.parametrize("block", [block for block in CONSOLE if "$ curl" not in block.text], ids=name_of)
def test_console_blocks_show_the_output_of_their_commands(block: Block, tmp_path: Path) -> None:
    """Each command prints the output on the page, in which ``...`` replaces lines that differ between machines."""
    sessions = sessions_of(block)
    mark = "--- end of the command ---"
    script = "".join(f"{command}\nstatus=$?; echo '{mark}'; (exit $status)\n" for command, _ in sessions)

    ran = subprocess.run(
        ["bash", "-c", script],
        env=plain_environment(),
        cwd=tmp_path,
        timeout=120,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    outputs = ran.stdout.split(f"{mark}\n")
    assert len(outputs) == len(sessions) + 1
    for (command, shown), got in zip(sessions, outputs, strict=False):
        assert_shows(command, shown, got)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "sh"], ids=name_of)
def test_shell_commands_are_tested(block: Block) -> None:
    """Each shell command installs an existing package, exports variables, or runs in another test."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    for line in block.text.splitlines():
        words = shlex.split(line)
        if words[:2] == ["pip", "install"]:
            name, extras = re.fullmatch(r"([^\[]+)(?:\[(.*)\])?", words[2]).groups()  # type: ignore[union-attr]
            assert len(words) == 3
            assert name == project["name"]
            assert not extras or set(extras.split(",")) <= set(project["optional-dependencies"])
        elif words[0] == "export":
            assert all(re.fullmatch(r"(OTEL_\w+|NETRC)=\S+", word) for word in words[1:])
        else:
            # The test of the five-minute tutorial runs the README's command, and other tests run the verification
            # page's command.
            assert words[0] == "opentelemetry-instrument"
            assert block == services_block() or block.page.name == "verification.md"


# The five-minute tutorial


def services_block() -> Block:
    (block,) = [block for block in blocks_of(README) if "opentelemetry-instrument" in block.text]
    return block


def wait_until_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"nothing listens on the port after {SECONDS_TO_START} s:\n{log.read_text()}")


def curl(command: str) -> str:
    """Execute a curl command without requiring curl, and return its output."""
    program, *words = shlex.split(command)
    assert program == "curl"
    url = words.pop()
    request = urllib.request.Request(url)
    while words:
        option = words.pop(0)
        if option == "-H":
            name, _, value = words.pop(0).partition(": ")
            request.add_header(name, value)
        else:
            assert option == "-s"
    with urllib.request.urlopen(request, timeout=30) as response:
        return response.read().decode() + "\n"


@pytest.fixture
def five_minutes(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Start the README's services on free ports, and yield the ports that replace the README's ports."""
    ports = {"8000": str(unused_port()), "8001": str(unused_port())}
    sources = re.findall(r"`(\w+\.py)`[^\n]*:\n\n```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert [name for name, _ in sources] == ["profile_service.py", "user_service.py"]
    for name, source in sources:
        (tmp_path / name).write_text(with_ports(source, ports), "utf-8")
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", with_ports(services_block().text, ports) + "wait\n"],
            env=plain_environment() | instrumentations("fastapi", "httpx"),
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        for port in ports.values():
            wait_until_listening(int(port), process, log)
        yield ports
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def with_ports(text: str, ports: dict[str, str]) -> str:
    return re.sub(r"\b800[01]\b", lambda match: ports[match[0]], text)


def test_the_five_minute_tutorial_works_as_written(five_minutes: dict[str, str]) -> None:
    """With opentelemetry-instrument, the README's two services return the responses in the README."""
    (block,) = [block for block in blocks_of(README) if "$ curl" in block.text]

    for command, shown in sessions_of(block):
        assert_shows(command, shown, curl(with_ports(command, five_minutes)))


def test_settings_are_flags_of_opentelemetry_instrument(tmp_path: Path) -> None:
    """The command-line flag on the configuration page sets its variable."""
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    (flag,) = re.findall(r"`(--\w+_destinations)`", page)
    command = [sys.executable, "-c", "from otel_token_relay import Settings; print(*Settings.from_env().destinations)"]

    ran = subprocess.run(
        ["opentelemetry-instrument", "--propagators", "token_relay", flag, "https://profile-service", *command],
        env=plain_environment() | RELAY | instrumentations(),
        cwd=tmp_path,
        timeout=120,
        capture_output=True,
        text=True,
        check=True,
    )

    assert ran.stdout == "https://profile-service\n"


# Names


def is_known_variable(name: str) -> bool:
    modules = (
        "opentelemetry.environment_variables",
        "opentelemetry.sdk.environment_variables",
        "opentelemetry.instrumentation.environment_variables",
        "opentelemetry.util.http",
    )
    return any(name in vars(importlib.import_module(module)).values() for module in modules)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_variables_exist(page: Path) -> None:
    """This package or OpenTelemetry reads each variable on a page, unless the page presents it as misspelled."""
    text = page.read_text("utf-8")
    ours = {variable.name for variable in VARIABLES.values()} | set(re.findall(r"(OTEL_\w+): unknown variable", text))
    named = set(re.findall(r"\bOTEL_[A-Z_]*[A-Z]\b", text))

    assert {name for name in named if name not in ours and not is_known_variable(name)} == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_have_targets(page: Path) -> None:
    """Each link within the project points to an existing file."""
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))
    files = {target: page.parent / target for target in targets if "://" not in target}
    files |= {target: ROOT / target.removeprefix(FILES) for target in targets if target.startswith(FILES)}

    assert [target for target, file in files.items() if not file.exists()] == []


def test_links_of_the_readme_work_on_pypi() -> None:
    """The README contains only absolute links, because PyPI displays it without the project's other files."""
    targets = re.findall(r"\]\(([^)]+)\)", README.read_text("utf-8"))

    assert len(targets) > 10
    assert [target for target in targets if not target.startswith("https://")] == []


def test_every_page_is_in_the_index() -> None:
    """The index links to every page in docs/."""
    docs = ROOT / "docs"
    linked = re.findall(r"\]\((\w[^)#:]*\.md)\)", (docs / "index.md").read_text("utf-8"))
    pages = {page.relative_to(docs).as_posix() for page in PAGES if page.is_relative_to(docs)}

    assert pages - {"index.md"} == set(linked)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page: Path) -> None:
    """The Makefile contains each make target that a page mentions."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {word for command in re.findall(r"`make ([^`]+)`", page.read_text("utf-8")) for word in command.split()}

    assert {word for word in named if re.fullmatch("[a-z]+", word)} <= targets


def test_every_extra_is_in_the_readme() -> None:
    """The README describes every extra and mentions only existing extras."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    section = README.read_text("utf-8").partition("| extra |")[2].partition("\n\n")[0]

    assert set(code_spans(" ".join(re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)))) == extras


@pytest.mark.parametrize("reason", Reason, ids=str)
def test_every_reason_is_explained(reason: Reason) -> None:
    """The page of reasons contains each reason's meaning and advice, both as complete sentences."""
    page = (ROOT / "docs" / "reasons.md").read_text("utf-8")

    assert reason.meaning.endswith(".")
    assert reason.advice.endswith(".")
    assert re.search(rf"^\| `{reason}` \|.*{re.escape(reason.meaning)} \| {re.escape(reason.advice)} \|$", page, re.M)


def test_reasons_of_the_readme_exist() -> None:
    """The README's short table contains only existing reasons."""
    section = README.read_text("utf-8").partition("| reason |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)

    assert len(named) > 5
    assert all(Reason(name) for name in named)


def api_sections() -> dict[str, list[str]]:
    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    sections = re.findall(r"^## (otel_token_relay\S*)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return {module: re.findall(r"^\| `(\w+)", rows, re.MULTILINE) for module, rows in sections}


@pytest.mark.parametrize(
    "module",
    [
        "otel_token_relay",
        "otel_token_relay.exchange",
        "otel_token_relay.redaction",
        "otel_token_relay.testing",
        "otel_token_relay.verification",
        "otel_token_relay.verification.asgi",
        "otel_token_relay.verification.fastapi",
        "otel_token_relay.verification.wsgi",
    ],
)
def test_every_public_name_is_in_the_api(module: str) -> None:
    """The API page contains every name in ``__all__`` and no other name."""
    assert sorted(api_sections()[module]) == sorted(importlib.import_module(module).__all__)


def test_every_boundary_is_in_the_api() -> None:
    """The API page contains everything in servers/ that users can wrap around an application."""
    for name in ("asgi", "wsgi", "aiohttp", "grpc"):
        module = importlib.import_module(f"otel_token_relay.servers.{name}")
        offered = [n for n in vars(module) if n == "TokenRelayMiddleware" or n.endswith("server_interceptor")]

        assert api_sections()[module.__name__] == offered


@pytest.mark.parametrize("module", sorted(api_sections()))
def test_names_of_the_api_exist(module: str) -> None:
    """Each name on the API page can be imported from its section's module."""
    assert [name for name in api_sections()[module] if not hasattr(importlib.import_module(module), name)] == []


def test_every_error_is_documented() -> None:
    """The page of errors contains every error class and its attributes."""
    classes = {name: c for name, c in vars(errors).items() if isinstance(c, type) and issubclass(c, errors.RelayError)}
    rows = table_rows((ROOT / "docs" / "errors.md").read_text("utf-8"), 3)
    attributes = {code_spans(row[0])[0]: code_spans(row[2]) for row in rows}

    assert set(attributes) == set(classes)
    for name, error in classes.items():
        assert all(f"{attribute}:" in (error.__doc__ or "") for attribute in attributes[name])


# Destinations


def destination_cases() -> list[tuple[str, str, bool]]:
    text = (ROOT / "docs" / "destinations.md").read_text("utf-8").partition("| entry |")[2].partition("\n\n")[0]
    rows = [code_spans(cell) for row in table_rows("| entry |" + text, 3) for cell in row]
    entries, listed, others = rows[0::3], rows[1::3], rows[2::3]
    return [
        (entry, url, gets)
        for (entry,), yes, no in zip(entries, listed, others, strict=True)
        for urls, gets in ((yes, True), (no, False))
        for url in urls
    ]


@pytest.mark.parametrize(("entry", "url", "gets"), destination_cases())
def test_table_of_destinations_is_true(entry: str, url: str, gets: bool) -> None:
    """Each entry in the table matches the URLs in the second column but not the URLs in the third column."""
    origin = Origin.parse(url)

    assert origin is not None
    assert (RelayPolicy([Destination.parse(entry)]).match(origin) is not None) is gets


def test_table_of_destinations_has_cases() -> None:
    """The table contains both matching and nonmatching URLs."""
    assert {gets for *_, gets in destination_cases()} == {True, False}
    assert len(destination_cases()) > 12


# Generated pages


@pytest.fixture
def reference() -> ModuleType:
    """Return the docs/reference.py module, which does not belong to a package."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date(reference: ModuleType) -> None:
    """The generated pages are current; run ``make docs`` if this test fails."""
    assert [page.name for page in reference.find_stale(reference.build_pages())] == []


def test_every_variable_is_in_the_reference(reference: ModuleType) -> None:
    """The configuration page contains the name, the default, and the meaning of each variable."""
    page = reference.build_pages()[ROOT / "docs" / "configuration.md"]

    for variable in VARIABLES.values():
        (row,) = re.findall(rf"^\| `{variable.name}` \|(.*) \| (.*) \|$", page, re.MULTILINE)
        assert row == (f" `{variable.default}`" if variable.default else " ", variable.meaning)


def test_check_reports_an_outdated_page(
    reference: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With ``--check``, the script writes nothing and exits with 1 if a page is missing or outdated."""
    monkeypatch.setattr(reference, "DOCS", tmp_path)

    assert reference.main(["--check"]) == 1
    assert list(tmp_path.iterdir()) == []
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
    (tmp_path / "reasons.md").write_text("changed", "utf-8")
    assert reference.main(["--check"]) == 1
    assert "reasons.md is out of date" in capsys.readouterr().err


def test_reference_rejects_unknown_flags(reference: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """With an unknown flag, the script writes nothing and exits with 2."""
    assert reference.main(["--chek"]) == 2
    assert "--check" in capsys.readouterr().err
