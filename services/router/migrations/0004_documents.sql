-- Whatever a decision names by its hash can be read again, also what came with the installation and was
-- never activated; `models` holds its models as well.

create table documents (
    sha256       text primary key,
    kind         text not null check (kind in ('rules', 'departments')),
    version      text not null,
    document     text not null,
    stored_at    timestamptz not null default now()
);
comment on table documents is 'Rules and departments of the installation with which something was decided, as canonical JSON.';
