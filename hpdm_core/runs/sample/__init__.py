"""`hpdm sample`: what is asked for, what it takes, the run, the folder of videos."""
