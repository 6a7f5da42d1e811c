"""Intake: answer the call, record the case.

Reads:    `telephony.calls` (what happened to calls), `intake.commands` (what agents record).
Emits:    `intake.case-recorded`, `intake.case-answered`, `intake.case-escalated`,
          `intake.contact-attached`, `intake.contact-closed`, `intake.contact-continued`,
          `intake.recording-overdue`, `intake.repeat-noticed`, `intake.callback-…`, `intake.command-refused`.
Promises: every offered call ends in a case or in a closed contact with a reason; an answered call
          that nobody records is named when the wrap-up time is over, a promised callback that
          nobody makes when its time is over.

Rooms:    `domain` and `contact` decide; `sources` reads what switches say; `waiting` informs callers;
          `desk` helps agents to record; `customers` keeps who they are; `staffing` plans; `door` is
          the process through which the outside comes in.
"""
