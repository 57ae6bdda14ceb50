"""The two services. The services' code does not mention tokens."""
