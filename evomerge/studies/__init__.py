"""Studies: what analysis finds, as sections of a page."""
