"""Implement the ``demo`` command, which demonstrates the package with servers on the loopback interface."""

from __future__ import annotations

import argparse
import sys

from otel_token_relay.commands import USAGE_ERROR


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``demo`` command to the command-line parser."""
    parser = commands.add_parser("demo", help="run three services and an authorization server on loopback")
    parser.add_argument("--record", metavar="FILE", help="write the run's spans to FILE as OTLP JSON, for `picture`")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the ``demo`` command, which requires the ``demo`` extra, and return its exit status."""
    from otel_token_relay.demo import run as run_demo

    try:
        return run_demo(options.record)
    except ModuleNotFoundError as error:
        print(
            f"the demo requires the 'demo' extra: pip install 'otel-token-relay[demo]' ({error.name} is missing)",
            file=sys.stderr,
        )
        return USAGE_ERROR
