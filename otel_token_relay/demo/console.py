"""The demo's console output, which requires at least 80 columns and is plain text when piped."""

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
CHECK_COLUMNS: Final = ("token", "response", "reason in its log")
TOKEN_COLUMNS: Final = ("received by", "user", "audience of the token")
NO_USER: Final = "anon"
NO_TOKEN: Final = "none"

_STYLES: Final = {"relayed": "green", "exchanged": "green", "withheld": "yellow", NO_TOKEN: "dim", MISSING: "bold red"}
_ASCII: Final = str.maketrans(
    {"─": "-", "┬": "+", "├": "+", "└": "+", "▶": ">", "↪": ">", "✓": "OK", "✗": "NO", "…": "..."}
)
# On a narrower console, the margin is dropped and columns are one space apart.
_ROOMY: Final = 96


class Report:
    """Print the demo's results part by part.

    Args:
        console: The console to print to. Its width, its encoding, and whether it is a terminal determine the
            layout.

    Attributes:
        hops: The hops printed so far.
        outcomes: The token check outcomes printed so far.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_roomy = console.width >= _ROOMY
        self.hops: list[Hop] = []
        self.outcomes: list[Outcome] = []

    def print_introduction(self, settings: Mapping[str, str], names: Mapping[str, str]) -> None:
        """Describe the processes and their settings.

        Args:
            settings: The environment variables that configure user-service.
            names: The service name for each URL that appears in a variable's value.
        """
        lines = (
            Text("otel-token-relay demo", "bold"),
            Text(),
            Text.assemble("caller ──▶ ", ("user-service", "cyan"), " ─┬─▶ profile-service ", ("  listed", "green")),
            Text.assemble(" " * 25, "├─▶ billing-service", ("   listed, gets a token of its own", "green")),
            Text.assemble(" " * 25, "├─▶ third-party", ("       not listed", "yellow")),
            Text.assemble(" " * 25, "└─▶ profile-service ──▶ third-party", ("   redirect", "yellow")),
            Text(),
            Text("Each is a separate process on loopback, as is the authorization server, where"),
            Text("alice and bob have signed in. user-service is plain FastAPI and httpx. It runs"),
            Text("under opentelemetry-instrument, and only these variables configure the relay:"),
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
        """Print a table of the tokens that each service has received for *user*, one row per service and token."""
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
            # Use the same widths in every part, so that the parts look like one table.
            table.add_column(name, min_width=width if self._console.width >= 80 else None, overflow="fold")
        for row in rows:
            table.add_row(*map(self._fit, row))
        self._print(Text(), Text(title, "bold"), table)

    def print_result(self, faults: Sequence[str], *, exchanged: str, unlisted: str) -> None:
        """Print the faults or, if there are none, a summary.

        Args:
            exchanged: The service that must receive tokens of its own.
            unlisted: The service that must not receive any token.
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
                Text.assemble(("✓ No service received a token that it must not have.", "bold green")),
                Text(f"  {len(self.hops)} hops. {relayed} had the token of the user who had called."),
                Text(f"  {own} went to {exchanged}, each with another token for the same user."),
                Text(f"  {unlisted} was called {len(to_unlisted)} times and received no token."),
                Text("  The spans and logs of the services contain no token."),
                Text("✓ profile-service accepted every valid token and rejected every other one.", "bold green"),
                Text(f"✓ {exchanged} accepted its own tokens and rejected the one that alice sends.", "bold green"),
            ]
        self._print(Text(), *lines)

    def print_failure(self, message: str) -> None:
        """Print the reason why the demo cannot run."""
        self._print(Text(f"✗ {message}", "red"))

    @staticmethod
    def _variable(name: str, value: str, names: Mapping[str, str]) -> list[Text]:
        """Return one line or, for a list of URLs, one line for the name and one line for each URL."""
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
        """Replace characters that the console's encoding does not support."""
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
    """Return a hop's table cells: user, sender, receiver, client, decision, reason, and received token."""
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
    """Return a token check's table cells: token description, response, and reason."""
    return outcome.check.what, f"{outcome.status} {outcome.error or outcome.name}".rstrip(), outcome.reason
