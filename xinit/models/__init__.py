"""Whole models: initialised by a recipe, and compared."""
