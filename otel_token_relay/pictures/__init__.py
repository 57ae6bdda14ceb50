"""Draw a recorded run as a diagram in which services are lanes and hops are arrows.

`spans` reads OTLP JSON, `runs` converts the spans to hops, and `page` and `mermaid` render the hops. These modules have
no side effects and treat every string in the recording as untrusted input.
"""
