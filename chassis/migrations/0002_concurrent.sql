-- Ends a statement that found something changed by another process; nothing of the statement stays.

create function refuse_concurrent() returns integer language plpgsql as $$
begin
    raise exception 'another process worked on the same case' using errcode = 'serialization_failure';
end
$$;
comment on function refuse_concurrent is 'Called by chassis/statement.py where a part did not change as many rows as it must.';
