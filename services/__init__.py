"""The four stages of the hotline, in the order of a call.

intake answers and records; router finds the responsible department;
resolver has it worked under deadlines; feedback tells the customer, asks, reopens and closes.
"""
