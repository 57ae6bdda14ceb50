"""Run the ``otel-token-relay`` command as ``python -m otel_token_relay``."""

import sys

from otel_token_relay.cli import main

if __name__ == "__main__":
    sys.exit(main())
