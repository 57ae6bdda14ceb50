"""Hooks for libraries that cache responses, one module for each library.

`otel_token_relay.personal_responses` contains the rule. This package does not import any of these libraries.
"""
