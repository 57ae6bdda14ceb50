"""Draw the pictures of the documentation.

    python tools/pictures.py             write docs/pictures/*.svg
    python tools/pictures.py --check     exit 1 if one of them is out of date
    python tools/pictures.py --record    run the demo, and keep the part of its output that the terminal shows

The docs/pictures/demo.ansi file contains the demo's output, with the escape sequences for its colors. A test
compares it with the output of a real run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tools.drawing import Drawing

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
RECORDING = FOLDER / "demo.ansi"
COSTS = FOLDER.parent / "performance.md"


def draw_token_path() -> str:
    """Draw which of a service's requests carry the caller's token."""
    picture = Drawing(
        720,
        390,
        "Which requests carry the token",
        "A caller sends a request with a token to user-service. The server boundary leases the token, your code runs,"
        " and the client decides at each hop. profile-service is on the list: the token is relayed. billing-service is"
        " on the list with an audience: it gets an exchanged token. third-party is not on the list: the token is"
        " withheld. profile-service redirects to third-party: this is a second hop, and the token is withheld.",
    )
    picture.labeled_box(16, 86, 84, 44, "caller")
    picture.arrow("good", (100, 108), (164, 108))
    picture.text(125, 98, "token", "good small", anchor="middle")
    picture.box(152, 24, 224, 272, "frame")
    picture.text(264, 46, "user-service", "strong", anchor="middle")
    picture.labeled_box(166, 62, 196, 76, "server boundary", "leases the token", "to this request")
    picture.arrow("soft", (264, 138), (264, 160))
    picture.labeled_box(166, 160, 196, 36, "your code")
    picture.arrow("soft", (264, 196), (264, 218))
    picture.labeled_box(166, 218, 196, 64, "client", "decides at each hop")
    picture.box(152, 312, 224, 62)
    picture.text(164, 332, "the list", "strong small")
    picture.text(164, 349, "https://profile-service", "code")
    picture.text(164, 366, "https://billing;audience=…", "code")
    picture.arrow("soft", (264, 312), (264, 284))
    picture.labeled_box(572, 24, 136, 84, "profile-service", "on the list")
    picture.labeled_box(572, 150, 136, 56, "billing-service", "on the list")
    picture.labeled_box(572, 262, 136, 84, "third-party", "not on the list")
    picture.arrow("good", (362, 232), (400, 232), (400, 48), (572, 48))
    picture.text(412, 40, "relayed", "good small")
    picture.arrow("soft", (572, 86), (416, 86), (416, 240), (364, 240))
    picture.text(424, 78, "redirect to third-party", "soft small")
    picture.arrow("other", (362, 250), (446, 250), (446, 178), (572, 178))
    picture.text(458, 170, "exchanged", "other small")
    picture.arrow("bad", (362, 262), (462, 262), (462, 286), (568, 286))
    picture.text(472, 278, "withheld", "bad small")
    picture.arrow("bad", (362, 274), (436, 274), (436, 322), (568, 322))
    picture.text(448, 340, "after the redirect:", "bad small")
    picture.text(448, 356, "withheld", "bad small")
    return picture.render()


def draw_lease() -> str:
    """Draw the period during which a request's token can be used."""
    begin, end, carried = 250, 470, 600
    picture = Drawing(
        720,
        330,
        "How long a token can be used",
        "A timeline. The lease starts when the request arrives and ends with the complete response. During the lease,"
        " tasks, threads, streaming responses, and the framework's background tasks get the token. A task that"
        " continues after the response gets no token after the lease: lease_ended. Work that was passed to carry with"
        " seconds=30 gets the token for 30 seconds. The next request on the same connection has its own lease.",
    )
    for x, label in ((begin, "request arrives"), (end, "response complete"), (carried, "30 s after carry")):
        picture.rule(x, 44, x, 314)
        picture.text(x, 32, label, "small", anchor="middle")
    rows: tuple[tuple[str, str, list[tuple[float, float, str, str]]], ...] = (
        ("The lease", "", [(begin, end, "good", "open")]),
        ("The request's code", "await, tasks, threads, executors", [(begin + 20, end - 40, "good", "token")]),
        ("Streaming response", "and BackgroundTasks", [(begin + 130, end, "good", "token")]),
        (
            "A task that continues",
            "after the response",
            [(begin + 70, end, "good", "token"), (end, 704, "bad", "lease_ended")],
        ),
        (
            "carry(work, seconds=30)",
            "for 30 seconds",
            [(begin + 130, carried, "good", "token"), (carried, 704, "bad", "lease_ended")],
        ),
        ("The next request", "on the same connection", [(end + 40, 704, "other", "its own token")]),
    )
    for number, (name, more, bars) in enumerate(rows):
        top = 54 + 44 * number
        picture.text(16, top + (15 if more else 22), name, "code" if "(" in name else "strong")
        if more:
            picture.text(16, top + 31, more, "small soft")
        for left, right, color, label in bars:
            picture.box(left, top + 5, right - left, 26, f"box {color}")
            picture.text((left + right) / 2, top + 23, label, f"small {color}", anchor="middle")
    return picture.render()


def draw_boundary() -> str:
    """Draw the positions of the boundary and the hop relative to the server, instrumentation, and middleware."""
    picture = Drawing(
        720,
        372,
        "Where the boundary and the hop are",
        "From outside to inside: the server reads the request and calls the server boundary, which leases and verifies"
        " the token. Inside the boundary are OpenTelemetry's middleware, which extracts the trace, the application's"
        " middleware, and your code. An outgoing request first enters OpenTelemetry's client instrumentation, which"
        " starts the span and injects the trace. The client then follows redirects and retries. For each hop, this"
        " package's decision is the last step before the connection.",
    )
    picture.text(228, 26, "A request comes in", "strong", anchor="middle")
    nested = (
        ("server: uvicorn, gunicorn, Werkzeug, …", "frame", ""),
        ("server boundary", "box good", "good strong"),
        ("OpenTelemetry: SERVER span, extract", "frame", ""),
        ("your middleware: sessions, CORS, …", "frame", ""),
    )
    for depth, (label, kind, color) in enumerate(nested):
        inset = 14 * depth
        picture.box(16 + inset, 42 + 50 * depth, 424 - 2 * inset, 318 - 64 * depth, kind)
        picture.text(30 + inset, 66 + 50 * depth, label, color)
    picture.text(44, 138 - 4, "leases the token, verifies it, ends the lease", "small soft")
    picture.labeled_box(72, 248, 312, 44, "your code", kind="box")
    picture.text(590, 26, "A request goes out", "strong", anchor="middle")
    steps = (
        (42, 56, ("OpenTelemetry", "CLIENT span, inject"), "box"),
        (130, 56, ("client library", "redirects, retries, auth"), "box"),
        (218, 74, ("hop", "token or none,", "decided each time"), "box good"),
        (324, 36, ("connection",), "box"),
    )
    for number, (top, height, lines, kind) in enumerate(steps):
        picture.labeled_box(492, top, 196, height, *lines, kind=kind)
        if number:
            before = steps[number - 1]
            picture.arrow("soft", (590, before[0] + before[1]), (590, top))
    picture.arrow("soft", (384, 270), (466, 270), (466, 70), (492, 70))
    return picture.render()


# The rows of docs/troubleshooting.md: the log entry of the calling or rejecting service, and the cause.
_NOT_SENT = (
    ("no line", "The relay is off."),
    ("destination_not_listed", "The entry differs or is misspelled."),
    ("explicit_credential", "The request has its own credential."),
    ("lease_ended, no_boundary", "The request has ended."),
    ("expired", "The token has expired, or clocks differ."),
    ("no_token", "The service received no token itself."),
    ("relayed", "A gateway removed the header."),
)
_REJECTED = (
    ("expired, not_yet_valid", "The token has expired, or clocks differ."),
    ("wrong_audience", "The token is for another service."),
    ("unknown_issuer", "The issuer's name differs."),
    ("wrong_type", "The issuer's tokens have another type."),
    ("another reason", "otel-token-relay verify < token.txt"),
)
CAUSES = (*_NOT_SENT, *_REJECTED)


def draw_decision_tree() -> str:
    """Draw the steps to find the cause of a 401."""
    rows = [f"{reason}: {cause}" for reason, cause in CAUSES]
    picture = Drawing(
        720,
        506,
        "How to find the cause of a 401",
        "Read the response body. With unauthenticated, no token arrived: look up the reason in the log of the calling"
        " service. With invalid_token, a token was rejected: look up the reason in the log of the rejecting service."
        " With temporarily_unavailable and 503, the issuer does not respond. The application or a gateway sent any"
        f" other body. The reasons and their causes: {' '.join(rows)}",
    )
    picture.box(16, 12, 312, 36)
    picture.text(28, 35, "401 or 503: read the response body", "small")
    groups = (
        (64, _NOT_SENT, "unauthenticated", ("No token arrived.", "Log of the caller:")),
        (278, _REJECTED, "invalid_token", ("It was rejected.", "Log of the receiver:")),
    )
    for top, causes, body, notes in groups:
        height = 28 * len(causes)
        middle = top + height / 2
        picture.arrow("soft", (28, 48), (28, middle), (48, middle))
        picture.box(48, middle - 36, 148, 72)
        picture.text(58, middle - 13, body, "code")
        for number, note in enumerate(notes):
            picture.text(58, middle + 7 + 18 * number, note, "small soft")
        picture.arrow("soft", (196, middle), (210, middle), has_tip=False)
        picture.arrow("soft", (210, top + 14), (210, top + height - 14), has_tip=False)
        for number, (reason, cause) in enumerate(causes):
            at = top + 14 + 28 * number
            picture.arrow("soft", (210, at), (222, at), has_tip=False)
            is_code = "_" in reason or reason in ("expired", "relayed")
            picture.text(228, at + 5, reason, "code" if is_code else "small")
            picture.text(430, at + 5, cause, "small" if cause[0].isupper() else "code")
    for top, body, cause in (
        (436, "temporarily_unavailable, 503", "The issuer does not respond: otel-token-relay check --online"),
        (468, "anything else", "The application or a gateway sent the response."),
    ):
        picture.arrow("soft", (28, 48), (28, top + 14), (48, top + 14))
        picture.text(56, top + 19, body, "code" if "_" in body else "small")
        picture.text(290, top + 19, cause, "small")
    return picture.render()


_ADVANCE, _LINE = 7.9, 19
_COLORS = {"1": "strong", "2": "soft", "31": "bad", "32": "good", "33": "bad", "36": "other"}
_SEQUENCE = re.compile(r"\x1b\[([\d;]*)m")


def draw_demo(theme: str) -> str:
    """Draw the demo's recorded output as a terminal."""
    lines = RECORDING.read_text("utf-8").splitlines()
    width = 32 + round(_ADVANCE * 80)
    picture = Drawing(
        width,
        32 + _LINE * len(lines),
        "The output of otel-token-relay demo",
        " ".join(line.strip() for line in plain(RECORDING.read_text("utf-8")).splitlines() if line.strip()),
        theme,
    )
    for number, line in enumerate(lines):
        column = 0
        for text, kind in _segments(line):
            if text.strip():
                start = len(text) - len(text.lstrip())
                x = 16 + _ADVANCE * (column + start)
                picture.columns(x, 30 + _LINE * number, text.strip(), kind, _ADVANCE)
            column += len(text)
    return picture.render()


def _segments(line: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a line, each with its style. Words are placed individually where blanks are wide."""
    kind = ""
    for part in re.split(r"(\x1b\[[\d;]*m)", line):
        if found := _SEQUENCE.fullmatch(part):
            kind = " ".join(_COLORS[code] for code in found[1].split(";") if code in _COLORS)
        else:
            for word in re.split(r"( {2,})", part):
                if word:
                    yield word, kind


def plain(text: str) -> str:
    """Return a recorded output without its colors."""
    return re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", text)


# The parts of the output in the terminal, each with its first line's beginning and its number of lines.
_SHOWN = (
    ("caller ", 4),
    ("alice calls with her token", 7),
    ("an anonymous caller uses", 6),
    ("✓ No service received", 7),
)


def record_demo() -> str:
    """Run the demo, and return the part of its output that the terminal contains."""
    environ = os.environ | {"FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "TERM": "xterm", "COLUMNS": "80"}
    environ.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "otel_token_relay", "demo"]
    lines = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.splitlines()
    shown = ["$ otel-token-relay demo"]
    for start, count in _SHOWN:
        (first,) = [at for at, line in enumerate(lines) if plain(line).startswith(start)]
        shown += ["", *(line.rstrip() for line in lines[first : first + count])]
    return "\n".join(shown) + "\n"


def read_costs() -> list[tuple[str, float]]:
    """Return the measured operations and their microseconds from the first table on the page about costs."""
    section = COSTS.read_text("utf-8").partition("## In microseconds\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([\d.]+) \|$", section, re.MULTILINE)
    return [(name.replace("`", ""), float(microseconds)) for name, microseconds in rows]


def draw_costs() -> str:
    """Draw the microseconds from the page about costs as bars."""
    rows = read_costs()
    names = "; ".join(f"{name}: {microseconds:g} microseconds" for name, microseconds in rows)
    height = 60 + 30 * len(rows)
    picture = Drawing(720, height, "What each step costs", f"Microseconds for each call. {names}.")
    picture.text(16, 28, "Microseconds for each call", "strong")
    scale = 290 / max(microseconds for _, microseconds in rows)
    for number, (name, microseconds) in enumerate(rows):
        top = 44 + 30 * number
        picture.text(16, top + 15, name, "small")
        is_ours = not name.startswith("OpenTelemetry")
        picture.box(360, top, max(2, round(scale * microseconds, 1)), 20, f"box {'good' if is_ours else 'soft'}")
        picture.text(368 + round(scale * microseconds, 1), top + 15, f"{microseconds:g}", "small")
    return picture.render()


PICTURES: dict[str, Callable[[], str]] = {
    "token-path": draw_token_path,
    "lease": draw_lease,
    "boundary": draw_boundary,
    "decision-tree": draw_decision_tree,
    "costs": draw_costs,
    "demo-light": lambda: draw_demo("light"),
    "demo-dark": lambda: draw_demo("dark"),
}


def main(arguments: list[str]) -> int:
    """Write the pictures, or return 1 if ``--check`` finds one that is out of date."""
    status = 0
    FOLDER.mkdir(exist_ok=True)
    if "--record" in arguments:
        RECORDING.write_text(record_demo(), "utf-8")
    for name, draw in PICTURES.items():
        path, content = FOLDER / f"{name}.svg", draw()
        if not path.exists() or path.read_text("utf-8") != content:
            if "--check" in arguments:
                print(f"{path.name} is out of date: run python tools/pictures.py")
                status = 1
            else:
                path.write_text(content, "utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
