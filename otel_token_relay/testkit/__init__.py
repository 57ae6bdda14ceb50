"""Implement the test kit that `otel_token_relay.testing` and `otel_token_relay.pytest_plugin` expose.

Production code does not import this package.
"""
