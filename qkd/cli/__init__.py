"""The command line: one file per command. At the top of a file nothing slow is imported, so that `qkd --help` is quick."""
