"""`hotline`: the operator's and developer's command line."""
