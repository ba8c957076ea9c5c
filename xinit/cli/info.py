"""``xinit info``: what this build is."""

from __future__ import annotations

import argparse

from xinit import build_info


def run(arguments: argparse.Namespace) -> int:
    for name, text in build_info().items():
        print(f"{name:12}{text}")
    return 0
