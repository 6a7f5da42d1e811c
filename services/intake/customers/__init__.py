"""Customers: who they are to the bank, what contacts they had, and what they may demand of their data."""
