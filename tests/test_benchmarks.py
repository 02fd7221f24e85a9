"""Every benchmark runs on a tiny model, writes a record, and prints the table of it."""

import json
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import transformers

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = {
    "step": ["--rows", "4", "--tokens", "8"],
    "epoch": ["--rows", "8", "--batches", "2", "--tasks", "medley"],
    "evaluation": ["--examples", "8", "--task", "medley"],
    "inference": ["--examples", "8", "--task", "medley"],
    "router": ["--rows", "4", "--tokens", "8"],
    "mixed": ["--rows", "64", "--tokens", "8"],
    "scaling": ["--rows", "4", "--tokens", "8"],
    "packed": ["--rows", "4", "--steps", "1", "--runs", "2", "--tasks", "medley"],
    "compile": ["--rows", "4", "--tokens", "8"],
    "posterior": ["--rows", "4", "--tokens", "8"],
    "decoder": ["--rows", "4", "--examples", "8", "--task", "medley"],
    "packing": ["--rows", "4", "--batches", "2", "--task", "medley"],
}


@pytest.fixture
def script(monkeypatch, capsys):
    """Run a benchmark in this process: script("step", "--rows", ...) -> what it printed."""
    monkeypatch.syspath_prepend(FOLDER)

    def call(name: str, *arguments: object) -> str:
        path = str(FOLDER / f"{name}.py")
        monkeypatch.setattr("sys.argv", [path, *map(str, arguments)])
        # compiling does not go with shapes that are enforced at run time
        with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
            warnings.simplefilter("ignore")
            runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    yield call
    transformers.set_seed(0)


PROCESSES = {
    "commands": (["--repeats", "1"], "--help"),
    "serving": (
        ["--adapters", "2", "--clients", "2", "--requests", "8", "--texts", "2"],
        "| shared batches | 8 | 0 | 0 |",
    ),
}
"""Scripts that time whole processes, and print what they find."""


def test_every_script_is_run_here():
    scripts = {path.stem for path in FOLDER.glob("*.py")} - {"bench"}
    assert SCRIPTS.keys() | PROCESSES.keys() | {"export"} == scripts


def test_the_comparison_of_exports_finds_the_same_labels(saved_models, toy_task, tmp_path, smop):
    pytest.importorskip("onnxruntime", reason="pip install 'peft-smop[export]'")
    run = tmp_path / "run"
    options = ["--max-steps", 1, "--batch-size", 4, "--model", saved_models["t5"], "-o", run]
    code, _, err = smop("train", "--task", toy_task, *options)
    assert code == 0, err
    done = subprocess.run(
        [sys.executable, str(FOLDER / "export.py"), "onnx", str(run), "--examples", "3"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["examples"], said["labels equal"]) == (3, 3)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_script_that_times_processes_prints_its_table(name):
    if name == "serving":
        pytest.importorskip("fastapi")
    arguments, words = PROCESSES[name]
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert words in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_writes_a_record_and_prints_the_table_made_from_it(name, script, tmp_path):
    record = tmp_path / "record.json"
    common = ["--model", "tiny", "--device", "cpu", "--repeats", 1, "--output", record]
    printed = script(name, *common, *SCRIPTS[name])
    found = json.loads(record.read_text())
    assert found["benchmark"] == name
    assert found["config"]["model"] == "tiny"
    assert found["environment"]["torch"]
    assert all(len(line["seconds"]) == 1 for line in found["lines"])
    assert printed.rstrip().endswith(script(name, "--table", record).rstrip())
    for bar in found["bars"]:
        assert f"{'≥' if bar['at_least'] else '≤'} {bar['limit']:g} " in printed


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_gives_an_example(name, script, capsys):
    with pytest.raises(SystemExit):
        script(name, "--help")
    assert f"example: python benchmarks/{name}.py" in capsys.readouterr().out


def test_the_tables_are_made_from_the_records(script):
    assert script("bench") == (FOLDER / "records" / "README.md").read_text()


def test_a_table_puts_value_and_bar_side_by_side(script, tmp_path):
    record = {
        "benchmark": "step",
        "config": {"model": "tiny", "repeats": 3},
        "environment": {"device": "cpu", "threads": "1", "torch": "2", "peft": "0"},
        "says": "made up",
        "per": "step",
        "over": ["one"],
        "lines": [
            {"case": "c", "what": "one", "seconds": [1.0, 2.0, 4.0], "figures": {}, "scale": 1.0},
            {"case": "c", "what": "two", "seconds": [1.0, 3.0, 6.0], "figures": {}, "scale": 2.0},
        ],
        "bars": [
            {
                "case": "c",
                "what": "two",
                "limit": limit,
                "over": "one",
                "figure": None,
                "at_least": False,
            }
            for limit in (2.9, 3.1)
        ],
    }
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    last = script("step", "--table", path).splitlines()[-1]
    # rounds: 2·1/1, 2·3/2, 2·6/4
    bars = "over one: 3.000, ≤ 2.9 **not met**; over one: 3.000, ≤ 3.1 met"
    assert last == f"| c | two | 6 s | 3.000 [2.500, 3.000] | {bars} |"
