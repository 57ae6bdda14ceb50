"""How the demo looks: 80 columns and more, and plain text where it is piped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from otel_token_relay.demo.hops import MISSING, Hop
from otel_token_relay.demo.token_checks import Outcome, find_fault

COLUMNS: Final = ("user", "from", "to", "via", "decision", "reason", "saw")
TRIAL_COLUMNS: Final = ("token", "answer", "reason in its log")
NOBODY: Final = "anon"

_STYLES: Final = {"relayed": "green", "withheld": "yellow", "nothing": "dim", MISSING: "bold red"}
_ASCII: Final = str.maketrans(
    {"─": "-", "┬": "+", "├": "+", "└": "+", "▶": ">", "↪": ">", "✓": "OK", "✗": "NO", "…": "..."}
)
# Below this the lines have no margin and single gaps.
_ROOMY: Final = 96


class Report:
    """Print the demo, part by part.

    Args:
        console: Where to. Its width, its encoding and whether it is a terminal decide the look.

    Attributes:
        hops: Those that were printed so far.
        outcomes: The same, of trials.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_roomy = console.width >= _ROOMY
        self.hops: list[Hop] = []
        self.outcomes: list[Outcome] = []

    def print_opening(self, settings: Mapping[str, str], names: Mapping[str, str]) -> None:
        """Say what runs here.

        Args:
            settings: The environment variables that the services were given for the relay.
            names: Who is meant by a value, where it does not say so itself.
        """
        lines = (
            Text("otel-token-relay demo", "bold"),
            Text(),
            Text.assemble(
                "caller ──▶ ", ("user-service", "cyan"), " ─┬─▶ profile-service ", ("  on the list", "green")
            ),
            Text.assemble(" " * 25, "├─▶ third-party", ("       not on the list", "yellow")),
            Text.assemble(" " * 25, "└─▶ profile-service ──▶ third-party", ("   by a redirect", "yellow")),
            Text(),
            Text("Each is a process of its own on loopback. So is the authorization server, where"),
            Text("alice and bob have signed in. The two services are plain FastAPI and httpx. They"),
            Text("run under opentelemetry-instrument; all they know of the relay is its settings:"),
            Text(),
            *(self._variable(name, value, names.get(value)) for name, value in settings.items()),
            Text(),
            Text("profile-service also verifies every token, with this package and PyJWT."),
        )
        self._print(*lines)

    def print_part(self, title: str, hops: Sequence[Hop], *, has_header: bool) -> None:
        """Print one line for each hop, under a title."""
        self.hops += hops
        rows = [tuple(self._style(cell) for cell in hop_cells(hop)) for hop in hops]
        widths = (5, 12, 15, 5, 8, 22, 7)
        self._print_table(title, dict(zip(COLUMNS, widths, strict=True)), rows, has_header=has_header)

    def print_trials(self, title: str, outcomes: Sequence[Outcome], *, has_header: bool) -> None:
        """Print one line for each trial of profile-service, under a title."""
        self.outcomes += outcomes
        rows = []
        for outcome in outcomes:
            style = "bold red" if find_fault(outcome) else "yellow" if outcome.trial.reason else "green"
            what, answer, reason = trial_cells(outcome)
            rows.append((Text(what), Text(answer, style), Text(reason, style)))
        widths = (44, 17, 17)
        self._print_table(title, dict(zip(TRIAL_COLUMNS, widths, strict=True)), rows, has_header=has_header)

    def _print_table(
        self, title: str, widths: Mapping[str, int], rows: Sequence[Sequence[Text]], *, has_header: bool
    ) -> None:
        gap = 2 if self._is_roomy else 1
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), show_header=has_header, header_style="dim")
        for name, width in widths.items():
            # The same in every part, so that the parts read as one table.
            table.add_column(name, min_width=width if self._console.width >= 80 else None, overflow="fold")
        for row in rows:
            table.add_row(*map(self._fit, row))
        self._print(Text(), Text(title, "bold"), table)

    def print_verdict(self, faults: Sequence[str], *, outsider: str) -> None:
        """Say whether all went as it should, and what was counted for that."""
        if faults:
            lines = [Text(f"✗ {fault}", "bold red") for fault in faults]
        else:
            outside = [hop for hop in self.hops if hop.note.receiver == outsider]
            arrived = sum(bool(hop.seen) for hop in self.hops)
            lines = [
                Text.assemble(("✓ Nobody saw a token that was not theirs.", "bold green")),
                Text(
                    f"  {len(self.hops)} hops. {arrived} brought a token, each time the one of the user who had called."
                ),
                Text(f"  {outsider} was called {len(outside)} times and saw none."),
                Text("  None stands in the spans and logs that the services wrote."),
                Text("✓ profile-service let in every valid token, and refused every other.", "bold green"),
            ]
        self._print(Text(), *lines)

    def print_failure(self, message: str) -> None:
        """Say why there is nothing to show."""
        self._print(Text(f"✗ {message}", "red"))

    @staticmethod
    def _variable(name: str, value: str, meaning: str | None) -> Text:
        return Text.assemble("  ", (name, "cyan"), "=", value, (f"  ({meaning})" if meaning else "", "dim"))

    @staticmethod
    def _style(cell: str) -> Text:
        return Text(cell, _STYLES.get(cell, ""))

    def _fit(self, text: Text) -> Text:
        """Spell out what the encoding does not have."""
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
    """Give one line: who called, from, to, client, decision, reason, what the receiver saw."""
    receiver = hop.note.receiver
    return (
        hop.call.user or NOBODY,
        hop.sender,
        f"↪ {receiver}" if hop.redirected else receiver,
        hop.note.client.partition("/")[0].removeprefix("python-"),
        hop.decision,
        hop.reason,
        ", ".join(hop.seen) or "nothing",
    )


def trial_cells(outcome: Outcome) -> tuple[str, str, str]:
    """Give one line: the token in words, what the caller was answered, why."""
    return outcome.trial.what, f"{outcome.status} {outcome.error or outcome.name}".rstrip(), outcome.reason
