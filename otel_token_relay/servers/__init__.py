"""The boundary of a request: bind its token or nothing, and end the lease with the response.

Instrumentation alone does not do: it leaves out ``extract`` when any span is current, and event
loops start the next request of a connection in the context of the one before it.
"""
