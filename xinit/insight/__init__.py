"""Which initialisation, and did it work? Gains and theory, and what they predict beside what happens. Loaded on first use."""
