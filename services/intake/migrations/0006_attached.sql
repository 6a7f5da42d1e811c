create table attached (
    case_id      uuid not null,
    call_id      text collate "C" not null,
    repeat_no    integer not null,
    agent        text not null,
    customer_ref text collate "C",
    sealed       text,
    attached_at  timestamptz not null,
    primary key (case_id, call_id)
);
comment on table attached is 'Which later calls were about a case, and what the customer said in them; sealed with the customer''s key.';
