"""Start two services with one of ten faults, and print the command that fails: ``python -m tools.faults 1``."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys

from tools.faults.planted import FAULTS
from tools.faults.running import Running


def main() -> int:
    """Run the command with the program's arguments."""
    parser = argparse.ArgumentParser(prog="python -m tools.faults", description="Start two services with one fault.")
    parser.add_argument("fault", type=int, choices=FAULTS, metavar="N", help=f"the fault, 1 to {len(FAULTS)}")
    parser.add_argument("--check", action="store_true", help="send the request once, print the response, and exit")
    options = parser.parse_args()
    fault = FAULTS[options.fault]
    # Leave the block when this process receives SIGTERM or SIGINT, so that the services end. Shells ignore SIGINT in
    # background jobs, and Python keeps this setting.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with Running(fault) as running:
            if options.check:
                reply = running.send()
                print(reply)
                return 0 if reply.status == fault.status else 1
            describe(running)
            signal.pause()
    except KeyboardInterrupt:
        pass
    return 0


def describe(running: Running) -> None:
    """Print the information that a reader needs to find the fault."""
    print("This request should return the profile, with status 200:\n")
    for method, path in running.calls:
        post = "" if method == "GET" else f"-X {method} "
        header = shlex.quote(f"@{running.header_file}")
        print(f"  curl -i {post}-H {header} {running.urls['user-service']}{path}")
    print(f"\nThe user's token: {running.token_file}\n")
    for name, pid in running.pids.items():
        print(f"{name}: {running.urls[name]}, pid {pid}, log {running.log_file(name)}")
    print(f"issuer: {running.issuer.url}")
    print("\nuser-service calls profile-service and returns its response.")
    print("The code of both services: tools/faults/services. Press Ctrl-C to stop.", flush=True)


if __name__ == "__main__":
    sys.exit(main())
