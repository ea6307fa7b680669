"""The one process that drives a sweep: it starts trials on Ray, records what they report, and ends with a champion."""
