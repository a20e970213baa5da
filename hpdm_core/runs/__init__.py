"""One function per command: assemble the parts, run them, return what the command prints."""
