"""A model's parameters: their names, which of them are chosen, and what is written to each."""
