create table customer_keys (
    customer_ref text collate "C" primary key,
    wrapped      bytea not null,
    created_at   timestamptz not null default now()
);
comment on table customer_keys is 'One wrapped key per customer; deleting a row makes everything about the person unreadable.';
