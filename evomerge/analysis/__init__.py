"""What can be said of a pool: its geometry, its tails, how many experts to merge."""
