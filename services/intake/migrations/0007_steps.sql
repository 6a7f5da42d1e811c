-- How a case stands follows from two things: its last step, and the last word on the work on it.
alter table cases
    add column step text,
    add column step_at timestamptz,
    add column work text,
    add column work_at timestamptz;
comment on column cases.step is 'The last step of its life, by cycle and place in it; `cycle` is the cycle of this.';
comment on column cases.work is 'The last word on the work on it by time: delivered, in progress, waiting.';
update cases
   set step = state, step_at = changed_at
 where state not in ('delivered', 'in_progress', 'waiting');
-- The step before the work was not kept; how its cycle began is certain.
update cases
   set work = state, work_at = changed_at,
       step = case when cycle > 1 then 'reopened' when cycle = 1 then 'recorded' end,
       step_at = case when cycle is not null then changed_at end
 where state in ('delivered', 'in_progress', 'waiting');
