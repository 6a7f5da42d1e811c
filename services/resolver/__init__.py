"""Resolver: the department works the case, under deadlines.

Reads:    `router.cases` (routed), `departments.commands` (what departments and customers ask).
Emits:    `resolver.case-delivered`, `-accepted`, `-returned`, `-transferred`, `-progressed`, `-paused`,
          `-resumed`, `-escalated`, `-resolved`, `-withdrawn`, `resolver.command-refused`, and on
          `departments.<code>` the responsible department's own copy of the case, `resolver.case-assigned`,
          and one to know of for each that assists, `resolver.case-shared`.
Promises: custody of a routed case is acknowledged at once; every command gets exactly one verdict;
          a deadline that passes is recorded once and never stops the work; no hand-over buys time to
          resolve, and a cycle that has its result gets no second one.
"""
