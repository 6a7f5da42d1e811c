-- What is known of each case's way to its department: for triage, for lessons, for the daily figures.

create table routings (
    case_id      uuid primary key,
    case_no      text not null,
    cycle        integer not null,
    language     text not null,
    customer_ref text collate "C" not null,
    phase        text not null,
    department   text,
    stage        text,
    rule         text,
    attempt_no   integer not null,
    moves        integer not null,
    changed_at   timestamptz,
    recorded_at  timestamptz not null,
    suggested    text,
    suggested_p  double precision,
    top          text not null,
    would_route  boolean not null,
    known_share  double precision,
    model_sha256 text,
    abstained    text,
    degraded     text,
    audit        boolean not null,
    label        text,
    label_source text,
    label_at     timestamptz
) with (fillfactor = 80);
create index routings_waiting on routings (changed_at) where phase = 'parked' or department = 'triage';
create index routings_by_time on routings (recorded_at);
create index routings_labelled on routings (label_at) where label is not null;
comment on table routings is 'One row per case, rewritten with each decision; a reading copy of entities.';
comment on column routings.top is 'The departments that the classifier thought of, with their probabilities, as JSON.';
comment on column routings.label is 'The right department, on a person''s word: a lesson for the classifier.';

create table rulesets (
    activation_id bigint generated always as identity primary key,
    version      text not null,
    sha256       text not null,
    document     text not null,
    by           text not null,
    reason       text not null,
    activated_at timestamptz not null default now()
);
comment on table rulesets is 'Every ruleset that was activated, as it was written; the newest is in force.';

create table models (
    sha256       text primary key,
    version      text not null,
    language     text not null,
    content      bytea not null,
    stored_at    timestamptz not null default now()
);
comment on table models is 'Models that were trained, whole (a zip of their files): what a decision names can always be read again.';

create table model_activations (
    activation_id bigint generated always as identity primary key,
    role         text not null check (role in ('active', 'shadow')),
    language     text not null,
    sha256       text not null,
    by           text not null,
    reason       text not null,
    activated_at timestamptz not null default now()
);
comment on table model_activations is 'Which model decides, and which is watched: the newest of each role and language; none = no model does.';

create table restrictions (
    department   text primary key,
    alarm        text not null,
    figure       double precision,
    by           text not null,
    since        timestamptz not null default now()
);
comment on table restrictions is 'Departments for which the classifier may not decide, and why.';
