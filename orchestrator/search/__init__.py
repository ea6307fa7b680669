"""Keep and rank a sweep's trials in Optuna: what is searched, what was tried, and which trial is best."""
