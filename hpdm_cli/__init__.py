"""The command line: parse, call one function of hpdm_core.runs, print what it returns."""
