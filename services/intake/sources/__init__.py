"""Telephony, source by source: what each switch says, as canonical call events (`schemas/telephony.py`).

One room per source. A mapper is pure: payloads or blocks in, `canonical.Mapped` out; connections,
files and HTTP are in `services/intake/edge`. The same fact read twice has the same key.
"""
