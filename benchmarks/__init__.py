"""Measure the cost of otel-token-relay, relative to OpenTelemetry alone in the same run."""
