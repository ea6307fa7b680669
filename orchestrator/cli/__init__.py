"""The command line: its verbs, what they take, and what they say where they are refused."""
