-- Messages and states are two or three thousand bytes of mostly ciphertext, just above the limit from which
-- PostgreSQL tries to compress a row and moves parts of it elsewhere: for each of them, and in vain.
alter table outbox set (toast_tuple_target = 8160);
alter table entities set (toast_tuple_target = 8160);
