"""Measure the cost of otel-token-relay relative to the cost of OpenTelemetry alone in the same run."""
