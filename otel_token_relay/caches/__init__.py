"""Hooks for libraries that cache responses, with one module for each library.

`otel_token_relay.personal_responses` explains which responses must not be cached. The hooks do not import the
libraries.
"""
