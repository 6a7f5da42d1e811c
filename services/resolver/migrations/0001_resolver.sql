-- The resolver keeps nothing beside the tables that every stage has.
select 1;
