-- What the stage knows, laid out for those who look: agents, callers who wait, managers.

create table calls (
    call_id       text collate "C" primary key,
    source        text collate "C" not null,
    customer_ref  text collate "C",
    language      text,
    phase         text not null,
    first_at      timestamptz not null,
    ended_at      timestamptz,
    cause         text,
    refused       text,
    refused_by    text,
    closed_for    text,
    case_id       uuid,
    repeat_no     integer not null,
    reason_topic  text,
    reason_text   text,
    told_at       timestamptz,
    told_place    integer,
    told_ms       integer,
    told_about    integer,
    told_at_most  integer,
    callback_state text,
    callback_due  timestamptz,
    callback_queue text,
    callback_ref  text collate "C",
    callback_number text,
    callback_attempts integer,
    waiting_since timestamptz
) with (fillfactor = 80);
create index calls_by_customer on calls (customer_ref, first_at desc) where customer_ref is not null;
create index calls_by_case on calls (case_id) where case_id is not null;
create index calls_by_time on calls (first_at);
create index calls_open on calls (source, first_at) where ended_at is null;
create index calls_to_call_back on calls (callback_due) where callback_state in ('open', 'overdue');
comment on table calls is 'One row per call, rewritten with each step of its contact; a reading copy of entities.';
comment on column calls.reason_text is 'What the caller told the assistant, sealed with the customer''s key.';
comment on column calls.callback_number is 'The number to call back, sealed with the key of callback_ref.';

create table visits (
    call_id       text collate "C" not null,
    visit         integer not null,
    queue         text collate "C" not null,
    priority      integer,
    queued_at     timestamptz,
    answered_at   timestamptz,
    left_at       timestamptz,
    left_for      text,
    agent         text collate "C",
    wait_ms       integer,
    talk_ms       integer,
    talk_ended_at timestamptz,
    hold_ms       integer not null,
    acw_ms        integer not null,
    primary key (call_id, visit)
) with (fillfactor = 80);
create index visits_by_queue on visits (queue, queued_at);
create index visits_waiting on visits (queue, queued_at) where answered_at is null and left_at is null;
create index visits_by_answer on visits (queue, answered_at) where answered_at is not null;
comment on table visits is 'One row per stay of a call in a queue, with the talk that it led to; durations in milliseconds.';
