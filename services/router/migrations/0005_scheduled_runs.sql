-- What the router does by the clock, without a case and without a person.

create table scheduled_runs (
    job          text primary key,
    slot         timestamptz not null,
    ran_at       timestamptz not null,
    failed       boolean not null,
    found        text not null
);
comment on table scheduled_runs is 'The last run of each job.';
comment on column scheduled_runs.slot is 'The moment for which the run was due: whatever was missed before it is made up by it, once.';
comment on column scheduled_runs.found is 'What it found, as JSON: every process shows the same, whichever has run it.';
