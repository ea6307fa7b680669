"""What lies on disk and in databases: a sweep's folder, its study, checkpoints, locks and spool."""
