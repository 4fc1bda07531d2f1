"""Studies: one question each, one command, resumable, one report."""
