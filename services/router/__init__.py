"""Router: give the case to the responsible department.

Reads:    `intake.cases` (recorded), `resolver.cases` (returned, transferred, withdrawn), `feedback.cases`
          (reopened), `router.commands` (rulings of triage).
Emits:    `router.case-routed`, `router.case-parked`, `router.case-rejected`, `router.ruling-lapsed`,
          `router.triage-overdue`, `router.command-refused`.
Promises: every case that asks for a department gets exactly one answer at once, whatever is missing; what
          neither a rule nor a sure classifier knows goes to triage, a department with its own queue;
          departments that disagree get a ruling, and who waits for one is never forgotten.

Rooms:    `domain` moves a case, `decision` chooses; `rules`, `departments` and `classifier` are what it
          chooses by; `reading` brings words, scores and what is in force; `learning` and `lessons`
          make tomorrow's model and watch today's, in a process of their own (`python -m
          services.router.lessons`); `replay` takes decisions again.
"""
