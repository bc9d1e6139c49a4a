"""The command line: one file per command. Only click is imported at the top: `qkd --help` must answer at once."""
