-- What the door keeps: what came in, what agents draft, who the customers are, how their cases stand.

create table deliveries (
    source       text collate "C" not null,
    delivery     text collate "C" not null,
    digest       bytea not null,
    received_at  timestamptz not null default now(),
    primary key (source, delivery)
);
create index deliveries_by_age on deliveries using brin (received_at);
comment on table deliveries is 'Every delivery that was acknowledged, once: the same again is a duplicate, other content under it a conflict.';

create table refused_deliveries (
    refused_id   bigint generated always as identity primary key,
    source       text not null,
    reason       text not null,
    explanation  text not null,
    sealed       bytea,
    received_at  timestamptz not null default now()
);
create index refused_by_age on refused_deliveries (received_at);
comment on column refused_deliveries.sealed is 'The body as it came, sealed with the service key; none where the sender could not be believed.';

create table feeds (
    feed         text collate "C" primary key,
    published    bigint not null default 0,
    declared     bigint not null default 0,
    position     text,
    moved_at     timestamptz not null default now()
);
comment on table feeds is 'How many facts a feed has published (the number of its last one), and where its reader stands.';

create table drafts (
    call_id      text collate "C" primary key,
    version      integer not null,
    agent        text not null,
    customer_ref text collate "C" not null,
    sealed       text not null,
    updated_at   timestamptz not null default now()
);
comment on table drafts is 'What an agent has written so far about a call; sealed with the customer''s key.';

create table idempotency (
    idempotency_key text collate "C" primary key,
    digest       bytea not null,
    command_id   uuid not null,
    call_id      text not null,
    created_at   timestamptz not null default now()
);
create unique index idempotency_by_command on idempotency (command_id);
create index idempotency_by_age on idempotency using brin (created_at);
comment on table idempotency is 'Requests of agents by their key: the same again gets the same verdict.';

create table customers (
    customer_ref text collate "C" primary key,
    version      integer not null default 1,
    language     text,
    vulnerable   boolean not null default false,
    sealed       text,
    consents     jsonb not null default '{}',
    merged_into  text collate "C" references customers,
    legal_hold   text,
    erased_at    timestamptz,
    first_at     timestamptz not null default now(),
    updated_at   timestamptz not null default now()
);
create index customers_merged on customers (merged_into) where merged_into is not null;
comment on table customers is 'The customer record; the reference is the blind index of a telephone number.';
comment on column customers.sealed is 'Name and number, sealed with the customer''s key.';
comment on column customers.merged_into is 'A person found that both are one customer; followed for ever.';

create table customer_actions (
    action_id    bigint generated always as identity primary key,
    customer_ref text collate "C" not null,
    action       text not null,
    by           text not null,
    reason       text not null,
    at           timestamptz not null default now()
);
create index customer_actions_by_customer on customer_actions (customer_ref, at);
comment on table customer_actions is 'Who looked at, changed, merged, exported, held or erased a customer record, and why.';

create table cases (
    case_id      uuid primary key,
    case_no      text,
    customer_ref text collate "C",
    call_id      text,
    category     text,
    product      text,
    severity     text,
    completeness integer,
    recorded_at  timestamptz,
    state        text,
    department   text,
    cycle        integer,
    changed_at   timestamptz,
    told_at      timestamptz,
    closed_at    timestamptz
);
create index cases_by_customer on cases (customer_ref, recorded_at desc);
create index cases_by_number on cases (case_no);
comment on table cases is 'How each case stands, as the other stages said; what agents and callers are told.';
