"""Build the bundle that a user takes out of a sweep: a direction set with its card, its pages and its pictures."""
