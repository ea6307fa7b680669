"""Principal components of a stream of samples, and the projections of it that are flattest."""
