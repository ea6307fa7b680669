"""Everything that runs `core`: sweep files, Ray Tune, Optuna, DeepSpeed, MLflow, and the command line."""
