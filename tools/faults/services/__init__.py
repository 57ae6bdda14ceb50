"""The two services, whose code does not mention tokens."""
