"""Resolver: the department works the case, under deadlines.

Reads:    `router.cases` (routed), `departments.commands` (what departments and customers ask).
Emits:    `resolver.case-delivered`, `-accepted`, `-returned`, `-transferred`, `-progressed`, `-paused`,
          `-resumed`, `-escalated`, `-resolved`, `-withdrawn`, `resolver.command-refused`, and each
          department's own copy of the case, `resolver.case-assigned` on `departments.<code>`.
Promises: custody of a routed case is acknowledged at once; every command gets exactly one verdict;
          a deadline that passes is recorded once and never stops the work.
"""
