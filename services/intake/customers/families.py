"""Which references are one customer, and whose cases are open, as SQL; persons may merge at any time."""

# `offset 0` keeps the planner from reading the whole table where a look through its index is enough.
KIN = """
with recursive up(asked, ref) as (
    select ref, ref from (select unnest($1::text[]) collate "C" as ref) as given
    union
    select asked, merged_into from up, lateral (
        select merged_into from customers where customer_ref = ref and merged_into is not null offset 0
    ) as later
), kin(asked, ref) as (
    select asked, ref from up
    union
    select asked, customer_ref from kin, lateral (
        select customer_ref from customers where merged_into = ref offset 0
    ) as earlier
)
"""
"""For each reference in $1 (`asked`) a row for each (`ref`) that is the same customer, itself included."""

OPEN_CASES = """
    select case_id, recorded_at from cases where customer_ref = ref and closed_at is null
    union
    select case_id, recorded_at from (
        select case_id from calls where customer_ref = ref and case_id is not null
        order by first_at desc limit 50
    ) as came_to join cases using (case_id) where closed_at is null
"""
"""The open cases of a reference `ref`, and those that one of its last 50 calls came to.

What a call came to may be filed under another number, which the caller gave the agent.
"""
