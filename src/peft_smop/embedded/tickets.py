"""Support tickets, generated, as a spreadsheet would save them: something to try commands on.

python -m peft_smop.embedded.tickets tickets.csv
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from random import Random

QUEUES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "billing": (
        ("Invoice {n} is wrong", "Charged twice", "Refund for order {n}"),
        ("The invoice says €{n}; I paid less.", "Please refund the payment to Frau {who}."),
    ),
    "delivery": (
        ("Parcel {n} is late", "Where is my parcel?", "Delivered to Köln, not Münster"),
        ("The parcel for {who} never came 📦.", 'The driver wrote "nobody home"; we were.'),
    ),
    "login": (
        ("Cannot log in", "Password reset for {who}", "Account locked"),
        ('It says "wrong password"; it is not.', "The reset mail for {who} does not come 😡."),
    ),
    "outage": (
        ("Site is down", "Error {n} everywhere", "Nothing loads"),
        ("All pages show error {n} since this morning 🔥.", "Server für {who} antwortet nicht."),
    ),
    "praise": (
        ("Thank you, {who}!", "Great service", "Danke schön"),
        ("{who} was very kind and quick 🙂.", 'Everyone here says "perfect"; so do I.'),
    ),
}
NAMES = ("Jürgen", "Zoë", "Øystein", "Ann-Marie O'Neil", "Łukasz", "Frau Groß", "Renée")
GREETINGS = ("Hello,", "Hi;", "Guten Tag,", "Good morning 👋", "")


def tickets(count: int = 600, seed: int = 0) -> list[dict[str, str]]:
    """Rows with number, subject, body and queue; some bodies have quotes and several lines."""
    random = Random(seed)
    queues = list(QUEUES)
    rows = []
    for number in range(1, count + 1):
        queue = queues[number % len(queues)]
        subjects, bodies = QUEUES[queue]
        words = {"n": random.randint(100, 9999), "who": random.choice(NAMES)}
        lines = [random.choice(GREETINGS), random.choice(bodies), f"Ticket of {words['who']}."]
        body = random.choice(("\n", " ")).join(line for line in lines if line).format(**words)
        subject = random.choice(subjects).format(**words)
        rows.append({"nr": str(number), "subject": subject, "body": body, "queue": queue})
    random.shuffle(rows)
    return rows


def main(path: Path) -> None:
    """Write them with semicolons, as spreadsheets in Europe do."""
    rows = tickets()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
