"""Intake's door: where the outside comes in, as a process of its own (`python -m services.intake.door`).

Telephony delivers call events (HTTP, manager connections, log files), the switch asks what to tell a
waiting caller (HTTP, FastAGI), agents record cases, managers look at queues and staffing.
The door decides nothing about a call or a case: it keeps facts and commands in the outbox before it
acknowledges them, and the stage decides.
"""
