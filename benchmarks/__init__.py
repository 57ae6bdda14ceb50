"""What otel-token-relay costs, measured."""
