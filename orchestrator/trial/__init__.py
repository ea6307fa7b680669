"""Run one trial: load the model, find directions, measure them. Nothing here depends on the search or on MLflow."""
