"""The observer: proves which handoffs are lost, and tells how far behind each consumer group is.

Reads every audited topic (headers only; of `ops.*` the bodies) and the groups' committed offsets.
Emits `ops.verdict-given`. Promises: no false DROPPED, every verdict with its evidence. Imports no
stage and changes no case.
"""
