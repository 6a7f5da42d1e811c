"""The contract: every event, command, topic and handoff that crosses a process boundary."""
