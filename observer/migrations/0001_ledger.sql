-- What the observer knows. Times are milliseconds since 1970: Kafka's own unit.

create table handoffs (
    key         bytea not null,
    grp         text not null,
    edge        text not null,
    topic       text not null,
    partition   integer not null,
    record_offset bigint not null,
    at_ms       bigint not null,
    subject     text not null,
    name        text,
    due_ms      bigint,
    sequence    bigint not null default 0,
    state       text not null,
    parts       bigint not null default 0,
    total       integer not null default 0,
    answer      bytea,
    settled_ms  bigint,
    primary key (key, grp)
);
create index handoffs_unsettled on handoffs (grp, state, record_offset)
    where state not in ('discharged', 'closed', 'recovered', 'waived');
create index handoffs_by_age on handoffs using brin (at_ms);
comment on table handoffs is 'One row per obligation (event, group): open, settled, or proved lost.';
comment on column handoffs.key is 'The event''s id as 16 bytes: a UUID''s own, else a digest; name then has the id as it was written.';
comment on column handoffs.parts is 'Bit mask of the outputs that were seen, of total.';

create table verdicts (
    verdict_id  bigint generated always as identity primary key,
    key         bytea not null,
    grp         text not null,
    edge        text not null,
    state       text not null,
    topic       text not null,
    partition   integer not null,
    record_offset bigint not null,
    subject     text not null,
    name        text,
    judged_ms   bigint not null,
    commit_seen_ms bigint,
    committed   bigint,
    barrier     text not null,
    note        text not null,
    told        boolean not null default false
);
create index verdicts_by_handoff on verdicts (key, grp);
create index verdicts_untold on verdicts (verdict_id) where not told;
comment on table verdicts is 'Append only: what was proved, with the commit, the ends taken after it, and how far was read.';

create table early (
    key         bytea not null,
    grp         text not null,
    state       text not null,
    topic       text not null,
    partition   integer not null,
    record_offset bigint not null,
    at_ms       bigint not null,
    answer      bytea not null,
    parts       bigint not null,
    total       integer not null,
    primary key (key, grp)
);
comment on table early is 'Answers that were read before what they answer.';

create table counts (
    writer      text not null,
    subject     bytea not null,
    following   bigint not null,
    missing     bigint[] not null,
    changed_ms  bigint not null,
    first       bigint not null default 1,
    primary key (writer, subject)
) with (fillfactor = 80);
comment on table counts is 'How far each writer has counted for each subject, and which numbers have not come.';

create table acts (
    edge        text not null,
    subject     bytea not null,
    at_ms       bigint not null,
    primary key (edge, subject)
);
comment on table acts is 'Acts that came before what they answer: an agent records while the caller still talks.';

create table positions (
    topic       text not null,
    partition   integer not null,
    position    bigint not null,
    last        bigint not null,
    primary key (topic, partition)
);
comment on table positions is 'Up to where each partition is read; moves in the transaction that stores what was read.';

create table commits (
    grp         text not null,
    topic       text not null,
    partition   integer not null,
    committed   bigint not null,
    primary key (grp, topic, partition)
);
comment on table commits is 'The highest offset each group was ever seen to have committed.';

create table blind (
    topic       text not null,
    partition   integer not null,
    from_offset bigint not null,
    to_offset   bigint not null,
    seen_ms     bigint not null,
    reason      text not null,
    primary key (topic, partition, from_offset)
);
comment on table blind is 'What the observer could not read: nothing is claimed about these records.';

create table writer (
    one         boolean primary key default true check (one),
    token       bigint not null
);
comment on table writer is 'Who may write: each observer that starts takes the next token, and an older one stops.';

create table status (
    one         boolean primary key default true check (one),
    at_ms       bigint not null,
    document    text not null
);
comment on table status is 'The observer''s last pass: lag, what is open, whether it is blind; what the commands show.';

create table actions (
    number      bigint primary key,
    at_ms       bigint not null,
    actor       text not null,
    verb        text not null,
    target      text not null,
    reason      text not null,
    before      text not null,
    hash        text not null
);
comment on table actions is 'What operators did, chained by hash: each row holds the hash of the row before.';
