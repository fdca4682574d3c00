"""One merge without a search: experts on disk in, one expert or model on disk out."""
