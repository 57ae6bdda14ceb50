"""Draw a recorded run: services as lanes, and each hop as an arrow with its decision.

`spans` reads OTLP JSON, `runs` turns the spans into hops, and `page` and `mermaid` write them. All of them are pure,
and expect that an attacker has chosen every text in the recording.
"""
