"""How a hotline is run: the embedded local stack, and what operations needs."""
