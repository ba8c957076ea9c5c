"""``python -m xinit``: ``demo`` initialises two models and measures them, ``info`` says what this build is."""

from __future__ import annotations

import argparse
import sys

from xinit import build_info, demo


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m xinit", description="Weight initialisation for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("info", help="print the version, and what it was built with")
    demo.add_arguments(commands.add_parser("demo", help=demo.SUMMARY, description=demo.SUMMARY))
    arguments = parser.parse_args()
    if arguments.command == "demo":
        return demo.main(arguments)
    for name, value in build_info().items():
        print(f"{name:12}{value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
