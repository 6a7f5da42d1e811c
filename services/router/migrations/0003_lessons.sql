-- What was decided of each case at first, and who took a department out of the classifier's hands or gave it back.

create table first_decisions (
    case_id      uuid primary key,
    at           timestamptz not null,
    language     text not null,
    department   text not null,
    stage        text not null,
    suggested    text,
    known_share  double precision,
    model_sha256 text,
    audit        boolean not null
);
create index first_decisions_by_time on first_decisions (at);
comment on table first_decisions is 'The first decision of each case, never rewritten: only this can be held against rules and models.';
comment on column first_decisions.audit is 'The classifier would have decided; a person did, without seeing what it said.';

create function keep_first_decisions() returns trigger language plpgsql as $$
begin
    insert into first_decisions
    select case_id, changed_at, language, department, stage, suggested, known_share, model_sha256, audit
    from fresh where attempt_no = 1 and stage is not null
    on conflict do nothing;
    return null;
end
$$;
create trigger first_decisions_are_kept after insert on routings
    referencing new table as fresh for each statement execute function keep_first_decisions();

insert into first_decisions
select case_id, changed_at, language, department, stage, suggested, known_share, model_sha256, audit
from routings where attempt_no = 1 and stage is not null;

create table restriction_acts (
    act_id       bigint generated always as identity primary key,
    department   text not null,
    allowed      boolean not null,
    alarm        text not null,
    figure       double precision,
    by           text not null,
    reason       text not null,
    at           timestamptz not null
);
comment on table restriction_acts is 'Each time that a department was taken from the classifier or given back; evidence counts from the last return.';
