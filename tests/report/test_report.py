"""Reports say what the runs say, ours apart from the paper's, and what is missing as missing."""

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from peft_smop.errors import CheckpointError, RunError
from peft_smop.lab.sweep import jobs_of
from peft_smop.lab.working import Store, remember, work
from peft_smop.report import paper, tables
from peft_smop.report.figures import draw_all
from peft_smop.report.gathering import gather
from peft_smop.report.robust import interquartile_mean, probability_of_improvement
from peft_smop.report.table import Cell, Table, Tone
from peft_smop.results import RunDirectory
from peft_smop.tuner import STRATEGIES


@pytest.fixture(scope="module")
def store(small_medley, tmp_path_factory):
    """A grid of small runs: two lengths of two numbers of prompts, and one method more."""
    folder = tmp_path_factory.mktemp("reported")
    quick = {"max_steps": 4, "eval_steps": 2, "batch_size": 8}
    common = {"task": str(small_medley), "model": "embedded", "training": quick}
    jobs = jobs_of({**common, "k": [2, 4], "l": [1, 5], "seeds": 2})
    jobs += jobs_of({**common, "methods": ["prompt-tuning-5"], "lr": [0.5, 0.1]})
    remember(Store(folder), jobs)
    work(jobs, Store(folder), "test")
    return folder


@pytest.fixture(scope="module")
def groups(store):
    return gather([store])


def _written_so(path, spec):
    """Let a finished run have been started with another specification."""
    directory = RunDirectory(path.parent)
    result = directory.read_result()
    path.write_text(yaml.safe_dump(spec))
    result.model_copy(update={"files": directory.hashes()}).save(directory.result)


def test_seeds_of_an_earlier_version_are_of_the_same_method(store, tmp_path):
    """Its specifications lack what came later, and say nothing else by that."""
    shutil.copytree(store, tmp_path / "store")
    for path in (tmp_path / "store").rglob("spec.yaml"):
        said = yaml.safe_load(path.read_text())
        if said["seed"] == 0:
            del said["pooled"], said["method"]["pooling"]
            said["method"] = {k: v for k, v in said["method"].items() if v is not None}
        else:
            said["method"]["pooling"] = "own"  # as by itself
        _written_so(path, said)
    found = gather([tmp_path / "store"])
    assert [len(group.runs) for group in found] == [2, 2, 2, 2, 1]
    assert not any("(" in group.label for group in found)


def test_what_a_head_read_tells_two_methods_apart(store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    for path in (tmp_path / "store").rglob("spec.yaml"):
        said = yaml.safe_load(path.read_text())
        if said["seed"]:
            said["method"]["pooling"] = "mean"
            del said["pooled"]  # as there was a while
        _written_so(path, said)
    labels = {group.label for group in gather([tmp_path / "store"])}
    assert {"smop k=2 l=5", "smop k=2 l=5 (pooled=mean)"} <= labels


def test_runs_are_grouped_by_all_but_seed_and_rate_and_the_rate_is_chosen_by_validation(
    store, groups
):
    assert [len(g.runs) for g in groups] == [2, 2, 2, 2, 1]
    assert {g.label for g in groups} == {
        "smop k=2 l=1",
        "smop k=2 l=5",
        "smop k=4 l=1",
        "smop k=4 l=5",
        "prompt-tuning l=5",
    }
    tuned = next(g for g in groups if g.label == "prompt-tuning l=5")
    assert tuned.rates == (0.5, 0.1)
    results = [
        json.loads(path.read_text()) for path in store.glob("runs/*prompt-tuning*/result.json")
    ]
    means = {
        rate: sum(
            r["validation"]["score"] for r in results if r["training"]["learning_rate"] == rate
        )
        for rate in tuned.rates
    }
    assert tuned.runs[0].result.training.learning_rate == max(tuned.rates, key=means.__getitem__)


def test_scores_are_the_runs_own(groups):
    table = tables.scores(groups)
    row = next(row for row in table.rows if row[0].text == "smop k=2 l=5")
    group = next(g for g in groups if g.label == "smop k=2 l=5")
    assert row[1].text == f"{group.mean:.1f} ± {group.deviation:.1f} (2)"
    assert any("learning rates were tried" in note for note in table.notes)


def test_every_figure_of_the_paper_s_is_some_method_s_and_ours_is_never_mixed_with_it(groups):
    assert len(paper.figures()) == 599
    keys = {paper.key_of({"name": "smop", "num_prompts": 10, "num_virtual_tokens": 1})}
    assert {f.method for f in paper.figures() if f.key in keys} == {"SMoP", "SMoP k=10 l=1"}
    table = tables.beside_the_paper(groups)
    assert table is not None
    assert [row[0].text for row in table.rows] == [
        "smop k=4 l=5",
        "smop k=2 l=1",
        "smop k=4 l=1",
        "smop k=2 l=5",
        "prompt-tuning l=5",
    ]
    for row in table.rows:
        assert row[2].tone is Tone.paper
        assert all(cell.tone is not Tone.paper for i, cell in enumerate(row) if i != 2)
        assert row[-1].text == "not comparable: small on embedded"
    printed = tables.beside_the_paper(groups, ["2"]).rows
    assert len(printed) == 16
    row = next(row for row in printed if row[0].text == "smop k=4 l=5")
    assert (row[1].text, row[2].text) == ("2: t5-base, average", "75.8 ± 1.9")
    missing = next(row for row in printed if row[0].text == "smop k=20 l=10")
    assert missing[3].text == missing[-1].text == "missing"


def test_a_verdict_is_inside_where_the_interval_of_the_difference_holds_nothing(groups):
    """Ours as if it had been trained on what the paper has: task and backbone alone changed."""
    group = next(g for g in groups if g.label == "smop k=4 l=5")
    ours = replace(group, task="rte", model="t5-base")
    rows = tables.beside_the_paper([ours], ["7"]).rows
    row = next(r for r in rows if (r[0].text, r[1].text) == ("smop k=4 l=5", "7: t5-base, rte"))
    difference = ours.mean - 77.5
    assert row[2].text == "77.5 ± 3.2"
    assert row[4].text == f"{difference:+.1f}"
    low, high = (float(x) for x in row[5].text.split(" to "))
    assert low < difference < high
    assert row[-1].text == ("inside" if low <= 0 <= high else "outside")
    average = next(
        r for r in rows if (r[0].text, r[1].text) == ("smop k=4 l=5", "7: t5-base, average")
    )
    assert average[-1].text == "not comparable: without boolq, cb, copa, multirc, wic"
    assert next(r for r in rows if r[0].text == "full")[-1].text == "missing"
    # by default only what can be met
    assert len(tables.beside_the_paper([ours]).rows) == 3
    assert {r[1].text for r in tables.beside_the_paper([ours]).rows} == {
        "3: t5-base, rte",
        "5: t5-base, rte",
        "7: t5-base, rte",
    }


def test_trained_parameters_agree_to_the_printed_digit_or_are_outside(groups):
    group = next(g for g in groups if g.label == "smop k=4 l=5")
    rows = tables.beside_the_paper([replace(group, model="t5-base")], ["4"]).rows
    assert rows[0][2].text == "0.0083"
    assert rows[0][-1].text == "outside"  # the packaged model is no T5-base


def test_interquartile_mean_and_probability_of_improvement_are_as_defined():
    # by hand: of eight scores the middle four are 3, 4, 5, 6
    assert interquartile_mean([[1, 2, 3, 4], [5, 6, 7, 100]]).value == pytest.approx(4.5)
    # task 1: 3 of 4 pairs; task 2: a tie everywhere, half
    found = probability_of_improvement([[3, 1], [5, 5]], [[2, 0], [5, 5]])
    assert found.value == pytest.approx((0.75 + 0.5) / 2)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert probability_of_improvement([[9]], [[1]]).low == 1


def test_the_probability_is_mann_and_whitney_s():
    from scipy.stats import mannwhitneyu

    one, other = [3.0, 5.0, 5.0, 8.0], [2.0, 5.0, 7.0]
    u = mannwhitneyu(one, other).statistic
    assert probability_of_improvement([one], [other]).value == pytest.approx(u / 12)


class Checked(HTMLParser):
    """Every element closed, and nothing asked of any other place."""

    EMPTY = ("meta", "link", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.outside = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.EMPTY:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href") and not value.startswith("data:"):
                self.outside.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def latex_is_balanced(text):
    """Environments nest, braces match, and every row of a table has its columns."""
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    assert len(re.findall(r"(?<!\\)\{", text)) == len(re.findall(r"(?<!\\)\}", text))
    for columns, body in re.findall(
        r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S
    ):
        rows = [row for row in body.split(r"\\") if "&" in row]
        assert rows
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1


def test_one_command_writes_every_form(smop, store, tmp_path):
    code, out, err = smop("report", store, "-o", tmp_path / "r")
    assert code == 0, err
    assert all(len(line) <= 80 for line in out.splitlines() if str(tmp_path) not in line)
    for words in ("Test scores", "Against smop k=2 l=1", "IQM", "Beside the paper", "GFLOPs"):
        assert words in out
    page = Checked()
    page.feed((tmp_path / "r" / "report.html").read_text())
    assert page.open == page.outside == []
    latex_is_balanced((tmp_path / "r" / "report.tex").read_text())
    rows = list(csv.reader(io.StringIO((tmp_path / "r" / "scores.csv").read_text())))
    assert len(rows) == 6
    assert {len(row) for row in rows} == {2}
    with (tmp_path / "r" / "runs.csv").open(newline="") as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == sum(len(group.runs) for group in gather([store]))
    for run in runs:
        result = json.loads((Path(run["run"]) / "result.json").read_text())
        assert float(run["score"]) == result["test"]["value"]
        assert int(run["seed"]) == result["seed"]
        worth = result["routing"] and result["routing"]["worth"]["value"]
        assert (float(run["worth"]) if run["worth"] else None) == worth
    assert "Worth of routing" in out
    figures = {path.name for path in (tmp_path / "r" / "figures").iterdir()}
    for name in ("seeds", "curves", "cost", "lengths"):
        assert {f"{name}.png", f"{name}.svg", f"{name}.pdf"} <= figures


def test_a_table_fits_a_terminal_and_says_what_is_missing():
    table = Table(
        "t",
        "A title",
        ("method", *(f"column {i}" for i in range(9))),
        ((Cell("a name & more_"), *(Cell.of(None if i == 3 else f"{i}.0 ± 1") for i in range(9))),),
        ("a note of some length " * 8,),
    )
    text = table.text(80)
    assert max(map(len, text.splitlines())) <= 80
    assert all(f"column {i}" in text for i in range(9))
    assert text.count("missing") == 1
    assert r"a name \& more\_" in table.latex()
    assert r"\textit{missing}" in table.latex()
    assert "a name &amp; more_" in table.html()


def test_a_run_that_was_altered_is_in_no_report(smop, store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    path = next((tmp_path / "store" / "runs").iterdir()) / "predictions.jsonl"
    path.write_text(path.read_text().replace("prediction", "prediction "))
    code, out, err = smop("report", tmp_path / "store")
    assert code == 2
    assert f"error: {path} was altered since the run finished" in err
    assert out == ""
    assert not (tmp_path / "store" / "report").exists()


def test_what_is_no_run_is_one_sentence(smop, tmp_path):
    assert "holds no finished run" in smop("report", tmp_path)[2]
    assert "is not a directory" in smop("report", tmp_path / "no")[2]
    (tmp_path / "store" / "one").mkdir(parents=True)
    (tmp_path / "store" / "one" / "spec.yaml").touch()
    (tmp_path / "store" / "one" / "failure.json").write_text('{"reason": "no\\nroom"}')
    said = smop("report", tmp_path / "store")[2]
    assert "store/one is not finished: no room; nothing was trained yet" in said
    shutil.rmtree(tmp_path / "store")
    assert "tables 1, 2, 3, 4, 5, 7" in smop("report", tmp_path, "--paper", "6")[2]
    with pytest.raises(RunError):
        gather([tmp_path])
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"result.json cannot be read"):
        gather([tmp_path])


def test_ticks_of_a_logarithmic_axis_do_not_touch():
    from peft_smop.report.figures import legible

    assert legible([2, 4, 5, 6, 10, 12, 20, 30, 40, 50, 60, 100]) == [2, 4, 6, 10, 20, 30, 50, 100]


def test_many_series_are_told_apart(groups, tmp_path):
    from peft_smop.report.figures import _styles

    styles = _styles([f"method {i}" for i in range(40)])
    assert len({tuple(sorted(style.items())) for style in styles.values()}) == 40
    drawn = draw_all(groups, tmp_path)
    # the same runs give the same files
    assert [p.svg for p in draw_all(groups, tmp_path)] == [p.svg for p in drawn]


@pytest.mark.parametrize("routing", sorted(STRATEGIES.keys() - {"single"}))
def test_a_mixture_whose_prompts_nobody_counted_has_its_routing_s_default(routing):
    said = dict(paper.key_of({"name": "smop", "routing": routing}))
    assert said["num_prompts"] == STRATEGIES[routing].default_num_prompts
    assert (
        dict(paper.key_of({"name": "smop", "routing": routing, "num_prompts": 3}))["num_prompts"]
        == 3
    )
