"""LSUV: layer by layer, weights are scaled until what goes out has unit variance."""

from __future__ import annotations
