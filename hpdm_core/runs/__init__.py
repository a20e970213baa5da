"""One function per command: build, run, and return the result that the command prints."""
