"""Statistics of samples without labels: principal components in one pass, and projections of least kurtosis."""
