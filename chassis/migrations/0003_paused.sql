-- An operator's word that the stage is to read nothing for now.

create table paused (
    one         boolean primary key default true check (one),
    since       timestamptz not null,
    actor       text not null,
    reason      text not null
);
comment on table paused is 'One row while an operator has paused the stage: its processes leave their group until it is gone.';
