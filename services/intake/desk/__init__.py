"""The agent's desk: what a case must say, whom to call back, and what must not be stored."""
