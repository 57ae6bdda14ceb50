"""``python -m otel_token_relay``: the same as the command ``otel-token-relay``."""

import sys

from otel_token_relay.cli import main

if __name__ == "__main__":
    sys.exit(main())
