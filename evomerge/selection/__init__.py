"""Selection: pure functions from fitness values to indices, with DEAP's operators underneath."""
