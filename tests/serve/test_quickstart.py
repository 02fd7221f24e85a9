"""Every command line of the quick start and of the serving page runs, in their order."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from answering import save_adapter
from serving import running

DOCS = Path(__file__).parents[2] / "docs"


def lines(name: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)
    return "".join(blocks).splitlines()


def curl(line: str, address: tuple[str, int]) -> dict:
    there = line.replace("127.0.0.1:8000", f"{address[0]}:{address[1]}")
    return json.loads(subprocess.run(shlex.split(there), capture_output=True, check=True).stdout)


def test_the_quick_start_runs_from_top_to_bottom(smop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in lines("quickstart.md"):
        words = shlex.split(line)
        if words[0] == "python":
            subprocess.run([sys.executable, *words[1:]], check=True)
        elif words[0] == "curl":
            with running({"tickets": tmp_path / "runs" / "tickets"}) as (address, _, _):
                answer = curl(line, address)["answers"][0]
            assert set(answer["probabilities"]) == {
                "billing", "delivery", "login", "outage", "praise",
            }  # fmt: skip
        elif words[1] != "serve":  # which would not end
            quick = line.replace("--max-steps 240 --eval-steps 60", "--max-steps 2 --eval-steps 2")
            code, _, err = smop(*shlex.split(quick)[1:])
            assert code == 0, err
    assert (tmp_path / "labelled.csv").read_text().count("Ticket of") == 600


def test_the_serving_page_s_requests_are_answered(tmp_path):
    from peft_smop.tasks import Task

    queues = Task("tickets", "{subject} {body}", ("a", "b"), ("same", "other"))
    adapters = {
        "tickets": save_adapter(tmp_path / "tickets", 1, queues),
        "mood": save_adapter(tmp_path / "mood", 2),
    }
    asked = [line for line in lines("serving.md") if line.startswith("curl")]
    with running(adapters) as (address, _, _):
        answers, listed = (curl(line, address) for line in asked)
    assert [answer["adapter"] for answer in answers["answers"]] == ["tickets", "mood"]
    assert [one["name"] for one in listed["adapters"]] == ["tickets", "mood"]
