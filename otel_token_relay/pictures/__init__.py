"""Draw a recorded run: services as lanes, and each hop as an arrow with its decision.

`spans` reads OTLP JSON, `runs` turns the spans into hops, and `page` and `mermaid` render them. All of these modules
are pure, and assume that an attacker has chosen every string in the recording.
"""
