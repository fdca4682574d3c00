"""What a run has to say: intervals, tables, plots, one HTML page, and the model card of the winner."""
