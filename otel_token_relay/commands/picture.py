"""Implement the ``picture`` command, which draws a recorded run as an HTML page or a Mermaid diagram."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from otel_token_relay.commands import OK, USAGE_ERROR

MAX_BYTES: Final = 128 * 1024 * 1024
"""The maximum size of a recording, which limits memory use. A recording of 10,000 spans is about 20 MB."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``picture`` command to the command-line parser."""
    parser = commands.add_parser("picture", help="draw a recorded run: which hops carried a token, and why")
    parser.add_argument("file", metavar="FILE", help="a recording of `demo --record`, or spans in OTLP JSON")
    parser.add_argument("--mermaid", action="store_true", help="write a Mermaid sequence diagram instead of a page")
    parser.add_argument("-o", dest="output", metavar="PAGE", help="the file to write (default: standard output)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the ``picture`` command and return its exit status.

    Error messages do not quote the file's name or contents, because they can contain a token.
    """
    from otel_token_relay.pictures import mermaid, page, runs, spans

    try:
        recording = spans.read_recording(_read(options.file))
    except spans.NotARecording as error:
        return _fail(str(error))
    except UnicodeDecodeError:
        return _fail("the file is not UTF-8 text; expected spans in OTLP JSON")
    except (OSError, ValueError) as error:  # A null character in the name causes a ValueError.
        return _fail(f"the file cannot be read: {getattr(error, 'strerror', None) or 'its name is invalid'}")
    limit, write = (mermaid.MAX_HOPS, mermaid.write_mermaid) if options.mermaid else (page.MAX_HOPS, page.write_page)
    drawn = write(runs.build_run(recording, max_hops=limit))
    if options.output is None:
        sys.stdout.write(drawn)
    else:
        Path(options.output).write_text(drawn, "ascii", newline="\n")
    return OK


def _read(name: str) -> str:
    from otel_token_relay.pictures.spans import NotARecording

    with open(name, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise NotARecording(f"the file is larger than {MAX_BYTES // 1024 // 1024} MiB; pass a shorter recording")
    return data.decode("utf-8-sig")


def _fail(message: str) -> int:
    print(f"otel-token-relay picture: error: {message}", file=sys.stderr)
    return USAGE_ERROR
