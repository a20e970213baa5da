"""`hpdm sample`: options, requests, the run, the folder of videos."""
