"""Load and staffing: how the queues did, what will come, and how many agents that takes.

`intervals` counts what happened per half-hour, `forecast` says how many calls to expect, `erlang`
how many agents answer them in time, and `plan` puts the three side by side. All of it is pure.
"""
