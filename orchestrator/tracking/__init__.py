"""MLflow: what is written there, in which order, and how it is delivered exactly once."""
