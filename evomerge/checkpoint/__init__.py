"""What a run leaves on disk: whole files, genomes by content, snapshots, ledger, outcomes, and one lock."""
