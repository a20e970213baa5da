"""`hpdm ablate`: a table's trials, what they take, the run."""
