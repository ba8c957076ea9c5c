"""A model's own code: its draws done by xinit at once, or written down and done where they belong."""
