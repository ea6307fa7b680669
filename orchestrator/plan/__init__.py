"""The dry run: what a sweep will take of memory, time and disk, before anything is spent."""
