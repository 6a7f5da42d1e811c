-- The tables that every stage has, each in its own schema.

create table entities (
    key         text collate "C" primary key,
    version     integer not null,
    sequence    integer not null,
    wake_at     timestamptz,
    updated_at  timestamptz not null,
    phase       text not null,
    timers      text not null,
    document    text not null
) with (fillfactor = 80);
create index entities_to_wake on entities (wake_at) where wake_at is not null;
comment on table entities is 'What the stage knows of each case (or call): one row, replaced by each step.';
comment on column entities.sequence is 'How many events this stage has said of the case; the ce_sequence of the last one.';
comment on column entities.wake_at is 'When the next timer is due, or when a timer that was fired is fired again if nothing came of it.';
comment on column entities.document is 'The state as JSON; text, because PostgreSQL need not understand it to keep it.';

create table inbox (
    event_id    uuid primary key,
    batch       bigint not null,
    digest      bigint not null,
    outcome     text not null
);
create index inbox_by_age on inbox using brin (batch);
comment on table inbox is 'Every input that was handled, once, and how it ended: caused, ignored, refused, waiting, dead.';

create table outbox (
    batch       bigint not null,
    ordinal     integer not null,
    topic       text not null,
    key         bytea not null,
    headers     bytea not null,
    value       bytea,
    correlation text collate "C",
    primary key (batch, ordinal)
);
create index outbox_by_case on outbox (correlation) where correlation is not null;
comment on table outbox is 'Every message that the stage says; inserted with the state change, never updated.';

create table unpublished (
    batch       bigint primary key,
    relay       boolean not null
);
comment on table unpublished is 'Batches of the outbox that Kafka has not acknowledged yet; relay = no consumer will bring them back.';

create table tasks (
    task_id     uuid primary key,
    key         text collate "C" not null,
    name        text not null,
    due_at      timestamptz not null,
    data        text not null
);
create index tasks_by_due on tasks (due_at);
comment on table tasks is 'Work at the edge that a decision asked for; done after the commit, its result comes back as a command.';

create table parked (
    event_id    uuid primary key,
    key         text collate "C" not null,
    arrival     bigint generated always as identity,
    topic       text not null,
    message_key bytea,
    headers     bytea not null,
    value       bytea,
    until       timestamptz not null
);
create index parked_by_key on parked (key);
create index parked_by_end on parked (until);
comment on table parked is 'Inputs that came before their case; folded in when it comes, refused when it does not.';

create table quarantine (
    quarantine_id uuid primary key,
    topic       text not null,
    partition   integer not null,
    record_offset bigint not null,
    reason      text not null,
    explanation text not null,
    sealed      bytea not null,
    first_seen  timestamptz not null,
    unique (topic, partition, record_offset)
);
comment on column quarantine.sealed is 'Key, headers and value of the record as they came, sealed with the service key.';
