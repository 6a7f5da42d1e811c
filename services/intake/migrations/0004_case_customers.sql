alter table cases add column customer_told boolean not null default false;
comment on column cases.customer_told is 'Whether the case has told what it tells of its customer, which it does once.';
