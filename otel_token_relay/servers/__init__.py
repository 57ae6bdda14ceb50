"""The server boundaries, which bind a request's token, or ``None``, and end the lease when the response ends.

Instrumentation alone is not sufficient. Instrumentation skips ``extract`` if a span is already current, and event loops
start a connection's next request in the context of the previous request.
"""
