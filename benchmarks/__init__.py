"""What otel-token-relay costs, measured against OpenTelemetry alone in the same run."""
