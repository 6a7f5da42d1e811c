alter table visits add column place integer, add column placed_at timestamptz;
comment on column visits.place is 'Where the switch last said that the caller stood, 1 being next; placed_at is when it said so.';
