"""What a pool of experts looks like, alone and with data: `evomerge analyze`."""
