"""Print the demo's results in a layout for at least 80 columns, without formatting if the output is redirected."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from otel_token_relay.demo.hops import MISSING, Hop
from otel_token_relay.demo.token_checks import Outcome, find_fault

COLUMNS: Final = ("user", "from", "to", "via", "decision", "reason", "token")
CHECK_COLUMNS: Final = ("token", "response", "logged reason")
TOKEN_COLUMNS: Final = ("received by", "user", "token audience")
NO_USER: Final = "anon"
NO_TOKEN: Final = "none"

_STYLES: Final = {"relayed": "green", "exchanged": "green", "withheld": "yellow", NO_TOKEN: "dim", MISSING: "bold red"}
_ASCII: Final = str.maketrans(
    {"─": "-", "┬": "+", "├": "+", "└": "+", "▶": ">", "↪": ">", "✓": "OK", "✗": "NO", "…": "..."}
)
# A narrower console has no margin and only one space between columns.
_ROOMY: Final = 96


class Report:
    """The demo's report, which is printed step by step.

    Args:
        console: The console to print to. The layout depends on the console's width and encoding.

    Attributes:
        hops: The hops that have been printed.
        outcomes: The outcomes of the token checks that have been printed.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_roomy = console.width >= _ROOMY
        self.hops: list[Hop] = []
        self.outcomes: list[Outcome] = []

    def print_introduction(self, settings: Mapping[str, str], names: Mapping[str, str]) -> None:
        """Print a description of the processes and their settings.

        Args:
            settings: The environment variables that configure user-service.
            names: The services' names, keyed by URL.
        """
        lines = (
            Text("otel-token-relay demo", "bold"),
            Text(),
            Text.assemble("caller ──▶ ", ("user-service", "cyan"), " ─┬─▶ profile-service ", ("  listed", "green")),
            Text.assemble(" " * 25, "├─▶ billing-service", ("   listed, gets its own token", "green")),
            Text.assemble(" " * 25, "├─▶ third-party", ("       not listed", "yellow")),
            Text.assemble(" " * 25, "└─▶ profile-service ──▶ third-party", ("   redirect", "yellow")),
            Text(),
            Text("The services and the authorization server are separate processes on loopback."),
            Text("alice and bob are signed in. user-service uses FastAPI and httpx."),
            Text("user-service runs under opentelemetry-instrument with these relay settings:"),
            Text(),
            *(line for name, value in settings.items() for line in self._variable(name, value, names)),
            Text(),
            Text("Each service verifies every token that it receives."),
        )
        self._print(*lines)

    def print_part(self, title: str, hops: Sequence[Hop], *, has_header: bool) -> None:
        """Print a table with one row per hop."""
        self.hops += hops
        rows = [tuple(self._style(cell) for cell in hop_cells(hop)) for hop in hops]
        widths = (5, 12, 15, 5, 9, 22, 5)
        self._print_table(title, dict(zip(COLUMNS, widths, strict=True)), rows, has_header=has_header)

    def print_tokens(self, title: str, user: str) -> None:
        """Print a table with one row for each token that a service has received for *user*."""
        rows = [
            (Text(hop.note.receiver), Text(token.subject), Text(token.audience))
            for hop in self.hops
            if hop.call.user == user
            for token in hop.note.tokens
        ]
        unique = {tuple(cell.plain for cell in row): row for row in rows}
        widths = (15, 7, 28)
        self._print_table(title, dict(zip(TOKEN_COLUMNS, widths, strict=True)), [*unique.values()], has_header=True)

    def print_checks(self, title: str, outcomes: Sequence[Outcome], *, has_header: bool) -> None:
        """Print a table with one row per token check."""
        self.outcomes += outcomes
        rows = []
        for outcome in outcomes:
            style = "bold red" if find_fault(outcome) else "yellow" if outcome.check.reason else "green"
            what, response, reason = check_cells(outcome)
            rows.append((Text(what), Text(response, style), Text(reason, style)))
        widths = (44, 17, 17)
        self._print_table(title, dict(zip(CHECK_COLUMNS, widths, strict=True)), rows, has_header=has_header)

    def _print_table(
        self, title: str, widths: Mapping[str, int], rows: Sequence[Sequence[Text]], *, has_header: bool
    ) -> None:
        gap = 2 if self._is_roomy else 1
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), show_header=has_header, header_style="dim")
        for name, width in widths.items():
            # Use the same column widths in every table so that the columns align.
            table.add_column(name, min_width=width if self._console.width >= 80 else None, overflow="fold")
        for row in rows:
            table.add_row(*map(self._fit, row))
        self._print(Text(), Text(title, "bold"), table)

    def print_result(self, faults: Sequence[str], *, exchanged: str, unlisted: str) -> None:
        """Print the faults, or print a summary if no faults were found.

        Args:
            exchanged: The service for which callers' tokens must be exchanged.
            unlisted: The service that must not receive any tokens.
        """
        if faults:
            lines = [Text(f"✗ {fault}", "bold red") for fault in faults]
        else:
            to_unlisted = [hop for hop in self.hops if hop.note.receiver == unlisted]
            relayed, own = (
                sum(bool(hop.seen) and (hop.note.receiver == exchanged) is is_own for hop in self.hops)
                for is_own in (False, True)
            )
            lines = [
                Text.assemble(("✓ No service received a token that it must not receive.", "bold green")),
                Text(f"  {len(self.hops)} hops. {relayed} carried the calling user's token."),
                Text(f"  {own} carried a token that was exchanged for {exchanged}."),
                Text(f"  {unlisted} received {len(to_unlisted)} requests, all without a token."),
                Text("  The services' spans and logs contain no tokens."),
                Text("✓ profile-service accepted every valid token and rejected every invalid token.", "bold green"),
                Text(f"✓ {exchanged} accepted exchanged tokens and rejected alice's original token.", "bold green"),
            ]
        self._print(Text(), *lines)

    def print_failure(self, message: str) -> None:
        """Print the reason that the demo cannot run."""
        self._print(Text(f"✗ {message}", "red"))

    @staticmethod
    def _variable(name: str, value: str, names: Mapping[str, str]) -> list[Text]:
        """Return the variable on one line, or return the name on one line and each URL on a separate line."""
        parts = re.split(r"(?<=,)", value) if "://" in value else [value]
        meanings = [names.get(part.rstrip(",").partition(";")[0], "") for part in parts]
        width = max(map(len, parts))
        rows = [
            Text.assemble(part.ljust(width), (f"  ({meaning})", "dim")) if meaning else Text(part)
            for part, meaning in zip(parts, meanings, strict=True)
        ]
        start = Text.assemble("  ", (name, "cyan"), "=")
        return [start + rows[0]] if len(rows) == 1 else [start, *(Text("    ") + row for row in rows)]

    @staticmethod
    def _style(cell: str) -> Text:
        return Text(cell, _STYLES.get(cell, ""))

    def _fit(self, text: Text) -> Text:
        """Replace characters that the console's encoding cannot represent."""
        if not self._console.options.ascii_only:
            return text
        fitted = text.copy()
        fitted.plain = text.plain.translate(_ASCII)
        return fitted

    def _print(self, *lines: Text | Table) -> None:
        margin = 2 if self._is_roomy else 0
        for line in lines:
            shown = self._fit(line) if isinstance(line, Text) else line
            if not shown:
                self._console.print()
                continue
            self._console.print(Padding(shown, (0, 0, 0, margin), expand=False), highlight=False)


def hop_cells(hop: Hop) -> tuple[str, ...]:
    """Return a hop's user, sender, receiver, client, decision, reason, and received token for a table row."""
    receiver = hop.note.receiver
    return (
        hop.call.user or NO_USER,
        hop.sender,
        f"↪ {receiver}" if hop.redirected else receiver,
        hop.note.client.partition("/")[0].removeprefix("python-"),
        hop.decision,
        hop.reason,
        ", ".join(hop.seen) or NO_TOKEN,
    )


def check_cells(outcome: Outcome) -> tuple[str, str, str]:
    """Return the cells of a table row: the token's description, the response, and the reason."""
    return outcome.check.what, f"{outcome.status} {outcome.error or outcome.name}".rstrip(), outcome.reason
