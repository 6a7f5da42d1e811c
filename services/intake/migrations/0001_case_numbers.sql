create sequence case_numbers;
comment on sequence case_numbers is 'The counter in C-YYYYMMDD-counter-check; gaps are fine, repeats are not.';
