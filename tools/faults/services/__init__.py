"""The two services. Their code does not mention tokens."""
