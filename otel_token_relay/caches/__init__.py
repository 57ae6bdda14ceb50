"""Hooks for libraries that cache responses, one module for each library.

`otel_token_relay.personal_responses` explains which responses must not be cached. This package does not import any of
these libraries.
"""
