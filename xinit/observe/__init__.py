"""A pass of a model, watched: what goes into each layer and comes out, what follows it, and what a residual path adds up to."""
