"""The hooks for HTTP and gRPC client libraries.

A hook determines a request's destination, reads the request's headers, and adds the token's header if the request may
carry the token.

Each module supports one library and never imports that library. Instead, each ``patch`` function receives the library's
module after the application has imported the library. `otel_token_relay.relay` makes all decisions.
"""
