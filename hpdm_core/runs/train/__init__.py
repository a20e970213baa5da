"""`hpdm train` and `hpdm finetune`, in stages: checks, memory, base weights, the run, previews."""
