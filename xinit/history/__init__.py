"""What was done to storages, operator by operator: written down, read as distributions, or done again."""
