"""The main job on one machine: two services, a third party and an authorization server on loopback.

Everything is real but the users: processes, HTTP, OpenTelemetry, an OAuth server and its signed
tokens. Importing this package loads none of it.
"""
