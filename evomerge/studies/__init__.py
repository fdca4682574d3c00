"""Studies: what analysis finds in a pool, as sections of a page."""
