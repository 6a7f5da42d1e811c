"""Router: give the case to the responsible department.

Reads:    `intake.cases` (recorded), `resolver.cases` (returned, transferred), `feedback.cases`
          (reopened), `router.commands` (rulings of triage).
Emits:    `router.case-routed`, `router.case-parked`, `router.case-rejected`, `router.command-refused`.
Promises: every case that asks for a department gets exactly one answer at once; what no rule knows
          goes to triage, a department with its own queue; departments that disagree get a ruling.
"""
