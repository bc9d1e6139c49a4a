"""One file per group of commands. Only click is imported at the top: `qkd --help` must answer at once."""
