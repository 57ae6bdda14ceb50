"""The demo's console output, which needs at least 80 columns and is plain text if it is piped."""

from __future__ import annotations

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
NO_USER: Final = "anon"
NO_TOKEN: Final = "none"

_STYLES: Final = {"relayed": "green", "withheld": "yellow", NO_TOKEN: "dim", MISSING: "bold red"}
_ASCII: Final = str.maketrans(
    {"─": "-", "┬": "+", "├": "+", "└": "+", "▶": ">", "↪": ">", "✓": "OK", "✗": "NO", "…": "..."}
)
# On a narrower console, the margin is dropped and columns are one space apart.
_ROOMY: Final = 96


class Report:
    """Print the demo's results part by part.

    Args:
        console: The console to print to. Its width, its encoding and whether it is a terminal determine the
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
            settings: The environment variables that configure the relay in the services.
            names: The service name for each URL that appears as a variable's value.
        """
        lines = (
            Text("otel-token-relay demo", "bold"),
            Text(),
            Text.assemble("caller ──▶ ", ("user-service", "cyan"), " ─┬─▶ profile-service ", ("  listed", "green")),
            Text.assemble(" " * 25, "├─▶ third-party", ("       not listed", "yellow")),
            Text.assemble(" " * 25, "└─▶ profile-service ──▶ third-party", ("   redirect", "yellow")),
            Text(),
            Text("Each is a separate process on loopback, as is the authorization server, where"),
            Text("alice and bob have signed in. The two services are plain FastAPI and httpx. They"),
            Text("run under opentelemetry-instrument. Only these variables configure the relay:"),
            Text(),
            *(self._variable(name, value, names.get(value)) for name, value in settings.items()),
            Text(),
            Text("profile-service also verifies every token, with this package and PyJWT."),
        )
        self._print(*lines)

    def print_part(self, title: str, hops: Sequence[Hop], *, has_header: bool) -> None:
        """Print a table with one row per hop."""
        self.hops += hops
        rows = [tuple(self._style(cell) for cell in hop_cells(hop)) for hop in hops]
        widths = (5, 12, 15, 5, 8, 22, 7)
        self._print_table(title, dict(zip(COLUMNS, widths, strict=True)), rows, has_header=has_header)

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

    def print_result(self, faults: Sequence[str], *, unlisted: str) -> None:
        """Print the faults or, if there are none, a summary.

        Args:
            unlisted: The service that must not receive any token.
        """
        if faults:
            lines = [Text(f"✗ {fault}", "bold red") for fault in faults]
        else:
            to_unlisted = [hop for hop in self.hops if hop.note.receiver == unlisted]
            with_token = sum(bool(hop.seen) for hop in self.hops)
            lines = [
                Text.assemble(("✓ No service received a token that it must not have.", "bold green")),
                Text(f"  {len(self.hops)} hops. {with_token} had a token, always that of the user who had called."),
                Text(f"  {unlisted} was called {len(to_unlisted)} times and received no token."),
                Text("  The spans and logs of the services contain no token."),
                Text("✓ profile-service accepted every valid token and rejected every other one.", "bold green"),
            ]
        self._print(Text(), *lines)

    def print_failure(self, message: str) -> None:
        """Print the reason why the demo cannot run."""
        self._print(Text(f"✗ {message}", "red"))

    @staticmethod
    def _variable(name: str, value: str, meaning: str | None) -> Text:
        return Text.assemble("  ", (name, "cyan"), "=", value, (f"  ({meaning})" if meaning else "", "dim"))

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
    """Return a hop's table cells: user, sender, receiver, client, decision, reason, received token."""
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
    """Return a token check's table cells: token description, response, reason."""
    return outcome.check.what, f"{outcome.status} {outcome.error or outcome.name}".rstrip(), outcome.reason
