"""How long commands take that need no model: CPU seconds of a process, median of several.

python benchmarks/commands.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

COMMANDS = (
    ["--help"],
    ["--version"],
    ["trian"],
    ["train", "--tsak", "cb"],
    ["train", "-t", "medley", "--method", "smopp"],
    ["tasks"],
    ["methods"],
)


def cpu_seconds(arguments: list[str]) -> float:
    """User and system seconds of one run of the command."""
    process = subprocess.Popen(
        [sys.executable, "-m", "peft_smop.cli", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, _, used = os.wait4(process.pid, 0)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print("| command | CPU seconds, median | lowest to highest |\n| --- | --- | --- |")
    for arguments in COMMANDS:
        times = [cpu_seconds(arguments) for _ in range(repeats)]
        middle = statistics.median(times)
        spread = f"{min(times):.2f} to {max(times):.2f}"
        print(f"| `smop {' '.join(arguments)}` | {middle:.2f} | {spread} |")


if __name__ == "__main__":
    main()
