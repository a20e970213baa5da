"""`hpdm ablate`: a table's trials, their cost, the run."""
