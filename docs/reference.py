"""Write the pages that are made from the definitions: the variables and the reasons.

python docs/reference.py            write them
python docs/reference.py --check    exit 1 if a page is not what would be written
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from otel_token_relay.reasons import Decision, Reason
from otel_token_relay.settings import VARIABLES, Variable

DOCS = Path(__file__).parent

_NOTE = "<!-- Made by docs/reference.py from the definitions in the package; do not change it here. -->\n"

_CONFIGURATION = """\
# Configuration

{note}
Every setting is an environment variable, a flag of `opentelemetry-instrument` and a field of `Settings`.
The flag is the variable in lower case without `OTEL_PYTHON_`: `--token_relay_destinations`.

`OTEL_PROPAGATORS=tracecontext,baggage,token_relay` switches the relay on.
It replaces OpenTelemetry's default of `tracecontext,baggage`, so name all three.
From code, `install()` does the same.

| variable | default | meaning |
|---|---|---|
{rows}

## What cannot be read

`Settings(...)` raises `ConfigurationError` at the first value that it cannot use.
`Settings.from_env()` never raises, since an exception there would keep the application from starting.
It logs one error for each value, and `otel-token-relay check` shows them and exits with 1.
The value itself then takes the strict side, which never relays more than was asked for:

| variable | strict side |
|---|---|
{strict}

`OTEL_PYTHON_TOKEN_RELAY_VERIFY` and `OTEL_PYTHON_TOKEN_RELAY_REQUIRE_VERIFIED` also take the strict side if their name is misspelled.
That is so if the variable is not set, but one is whose name differs by at most two characters, or by case, and whose value is not blank, `off`, `false`, `no` or `0`.
For example, `…_VERIFIY=report` applies `enforce`, until the name is corrected or the variable itself is set.

## In code

```python
from otel_token_relay import Settings

settings = Settings(destinations=["https://profile-service", "https://*.svc.cluster.local:8443;required"], max_age=60)

assert settings.min_ttl == 0
assert str(settings.destinations[1]) == "https://*.svc.cluster.local:8443;required"
```

| field | variable |
|---|---|
{fields}
"""

_REASONS = """\
# Reasons

{note}
Every hop gives one decision: `relayed`, `exchanged` or `withheld`.
Each decision has one reason of a closed set, and the strings are stable.

## Where to see them

- On the CLIENT span of the call, if it records: `token_relay.decision` and `token_relay.reason`.
- In the counter `token_relay.decisions`, with the same two attributes, and with `server.address` where the destination is listed.
  A wildcard entry counts under its own text, such as `*.svc.cluster.local`.
- In the debug log of `otel_token_relay`, with the destination: the host of its entry, `not listed`, or `unknown` if the URL cannot be read.
- For a URL that is yet to be called: `otel-token-relay explain URL`.

None of them holds the token.
A hop without a token is looked up only if one of them would show it.

## At a hop

| reason | decision | what it means | what to do |
|---|---|---|---|
{hop}

If several hold, the first one counts, in this order: `destination_unknown` or `destination_not_listed`, `explicit_credential`, what is wrong with the token, what the destination asks for.
Without a token, the reason is `explicit_credential` if the destination is listed and the request has a credential of its own, and `no_token` otherwise.

## At the door

What an incoming request brings is read once.
These are in the debug log only; a hop of that request then gives `no_token`.

| reason | what it means | what to do |
|---|---|---|
{door}
"""

_AT_THE_DOOR = (Reason.ABSENT, Reason.MALFORMED, Reason.AMBIGUOUS, Reason.TOO_LONG)


def build_pages() -> dict[Path, str]:
    """Give every generated page as it should be."""
    return {
        DOCS / "configuration.md": _CONFIGURATION.format(
            note=_NOTE,
            rows=_rows((f"`{v.name}`", f"`{v.default}`" if v.default else "", v.meaning) for v in VARIABLES.values()),
            strict=_rows((f"`{v.name}`", _strict_side(name, v)) for name, v in VARIABLES.items()),
            fields=_rows((f"`{name}`", f"`{v.name}`") for name, v in VARIABLES.items()),
        ),
        DOCS / "reasons.md": _REASONS.format(
            note=_NOTE,
            hop=_rows((f"`{r}`", Decision(r).outcome, r.meaning, r.advice) for r in Reason if r not in _AT_THE_DOOR),
            door=_rows((f"`{r}`", r.meaning, r.advice) for r in _AT_THE_DOOR),
        ),
    }


def _rows(rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _strict_side(name: str, variable: Variable) -> str:
    if name == "destinations":
        return "that entry is skipped, the others count"
    if name == "header":
        return "no destination at all: the token must not go out under a name that nobody chose"
    if name == "source_headers":
        return "no header: no token is taken"
    return f"`{variable.strict:g}`" if isinstance(variable.strict, float) else f"`{str(variable.strict).lower()}`"


def find_stale(pages: Mapping[Path, str]) -> list[Path]:
    """Give the pages that are missing or differ from what they should be."""
    return [page for page, text in pages.items() if not page.exists() or page.read_text("utf-8") != text]


def main(arguments: list[str]) -> int:
    """Write the pages, or with ``--check`` say which are out of step."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    pages = build_pages()
    stale = find_stale(pages)
    if arguments:
        for page in stale:
            print(f"{page.name} is out of step with the package: python docs/reference.py", file=sys.stderr)
        return 1 if stale else 0
    for page, text in pages.items():
        page.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
