"""A bundle opened for use: edited images, names for directions, and a page with sliders."""
