"""The command line: its verbs, their options, and the messages of refused ones."""
