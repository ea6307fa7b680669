"""Keep a sweep on disk and in databases: its folder, its study, checkpoints, locks and spool."""
