"""The hooks for libraries that cache responses, one module for each library.

`otel_token_relay.personal_responses` contains the rule. This package imports none of these libraries.
"""
