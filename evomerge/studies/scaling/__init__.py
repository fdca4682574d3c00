"""The scaling law of merging, measured on random subsets of the experts: `evomerge plan`."""
