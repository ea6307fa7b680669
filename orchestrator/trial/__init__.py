"""One trial, readable alone: it knows no search and no MLflow."""
