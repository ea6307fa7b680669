"""Optuna as the record of a sweep's trials: what is searched, what was tried, and which is best."""
