"""`hpdm eval-fvd`: the sets of clips, what is compared, the run, the scores."""
