"""Predict what a sweep will take in memory, time and disk, without running it."""
