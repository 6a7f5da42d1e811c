"""Intake: answer the call, record the case.

Reads:    `telephony.calls` (what happened to calls), `intake.commands` (what agents record).
Emits:    `intake.case-recorded`, `intake.case-answered`, `intake.contact-attached`,
          `intake.contact-closed`, `intake.recording-overdue`, `intake.command-refused`.
Promises: every offered call ends in a case or in a closed contact with a reason; an answered call
          that nobody records is named when the wrap-up time is over.
"""
