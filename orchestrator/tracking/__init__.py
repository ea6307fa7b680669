"""Record a sweep in MLflow: what is written, in which order, and how each record has effect exactly once."""
