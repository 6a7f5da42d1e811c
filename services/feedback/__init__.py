"""Feedback: tell the customer, ask, reopen, close.

Reads:    `resolver.cases` (resolved, withdrawn), `intake.cases` (answered), `router.cases` (rejected),
          `customers.replies` (ratings, and what became of each attempt to tell).
Emits:    `feedback.case-opened`, `-customer-told`, `-telling-failed`, `-customer-unreached`,
          `-telling-overdue`, `-satisfaction-recorded`, `-satisfaction-expired`, `-case-reopened`,
          `-case-closed`, `feedback.command-refused`.
Promises: telling begins at once and is retried; 24 hours without success are named; who is not
          satisfied gets the case reopened; every case ends closed.
"""
