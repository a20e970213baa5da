"""`hpdm train` and `hpdm finetune`, by stage: checks, memory, base weights, the run, previews."""
