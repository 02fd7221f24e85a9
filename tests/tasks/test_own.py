import pytest

from peft_smop.errors import ConfigError, DataError
from peft_smop.tasks import load_task

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

YAML = """\
name: tickets
template: "ticket: {subject}"
labels: {no: calm, yes: urgent}
data: tickets.jsonl
"""


@pytest.fixture
def folder(tmp_path):
    lines = [f'{{"subject": "s{i}", "label": "{"yes" if i % 2 else "no"}"}}\n' for i in range(20)]
    (tmp_path / "tickets.jsonl").write_text("".join(lines))
    return tmp_path


def load(folder, text=YAML, **options):
    (folder / "task.yaml").write_text(text)
    return load_task(str(folder / "task.yaml"), **options)


def fails(folder, text):
    with pytest.raises(DataError) as caught:
        load(folder, text)
    return str(caught.value).replace(f"{folder}/", "")


def test_five_lines_make_a_task(folder):
    task, split = load(folder)
    assert (task.name, task.labels, task.verbalizers) == (
        "tickets",
        ("no", "yes"),
        ("calm", "urgent"),
    )
    assert task.metric == "accuracy"
    assert [len(split.train), len(split.validation), len(split.test)] == [16, 2, 2]
    assert split.preset == "three-way"
    everything = [*split.train, *split.validation, *split.test]
    assert sorted(int(example.id) for example in everything) == list(range(1, 21))
    assert {(e.text, e.label) for e in everything} == {(f"ticket: s{i}", i % 2) for i in range(20)}


def test_csv_with_other_names_of_fields_is_read(tmp_path):
    (tmp_path / "t.csv").write_text(
        "key,subject,gold,who,kind\n"
        + "".join(f"k{i},s{i},{i % 2},w{i // 4},q\n" for i in range(40))
    )
    task, split = load(
        tmp_path,
        "name: t\ntemplate: '{subject}'\nlabels: {0: low, 1: high}\ndata: t.csv\nmetric: f1\n"
        "label: gold\nid: key\ngroup: who\npopulation: kind\n",
    )
    assert task.metric == "f1"
    example = next(e for part in (split.train, split.test) for e in part)
    number = int(example.id.removeprefix("k"))
    assert (example.group, example.population) == (f"w{number // 4}", "q")
    assert {e.group for e in split.train}.isdisjoint({e.group for e in split.test})


def test_parquet_booleans_are_labels(tmp_path):
    table = pa.table({"text": [f"t{i}" for i in range(20)], "label": [i < 10 for i in range(20)]})
    pq.write_table(table, tmp_path / "t.parquet")
    task, split = load(
        tmp_path, "name: t\ntemplate: '{text}'\nlabels: {False: a, true: b}\ndata: t.parquet"
    )
    assert task.labels == ("False", "true")
    assert {(int(e.text[1:]) < 10, e.label) for e in split.train} == {(True, 1), (False, 0)}


def test_files_for_all_three_parts_are_taken_as_they_come(folder):
    for part, count in (("train", 4), ("validation", 2), ("test", 3)):
        lines = [f'{{"subject": "{part}{i}", "label": "yes"}}\n' for i in range(count)]
        (folder / f"{part}.jsonl").write_text("".join(lines))
    text = YAML.replace(
        "data: tickets.jsonl", "train: train.jsonl\nvalidation: validation.jsonl\ntest: test.jsonl"
    )
    _, split = load(folder, text, seed=3)
    assert split.preset == "given"
    assert [e.text for e in split.test] == ["ticket: test0", "ticket: test1", "ticket: test2"]
    assert split.record()["sources"]["test"] == str(folder / "test.jsonl")


def test_with_train_and_test_a_tenth_of_train_is_held_out(folder):
    (folder / "test.jsonl").write_text('{"subject": "new", "label": "no"}\n')
    text = YAML.replace("data: tickets.jsonl", "train: tickets.jsonl\ntest: test.jsonl")
    _, split = load(folder, text)
    assert split.preset == "paper"
    assert [len(split.train), len(split.validation), len(split.test)] == [18, 2, 1]
    (folder / "task.yaml").unlink()
    text = YAML.replace("data: tickets.jsonl", "train: tickets.jsonl\nvalidation: test.jsonl")
    assert [e.text for e in load(folder, text).split.test] == ["ticket: new"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("labels:", "lables:", "line 3: unknown key 'lables'; did you mean labels or label?"),
        ("labels: {no: calm, yes: urgent}\n", "", "no key 'labels'; expected it beside the others"),
        (
            "labels: {no: calm, yes: urgent}",
            "labels: urgent",
            "line 3: labels is 'urgent'; expected a valid dictionary",
        ),
        ("name: tickets", "name:", "line 1: name is ''; expected"),
        ("data:", "metric: auc\ndata:", "line 4: metric is 'auc'; expected 'accuracy' or 'f1'"),
        ("yes: urgent", "yes: calm", "line 3: verbalizer 'calm' stands for two things"),
        (", yes: urgent", "", "line 3: labels ('no',) with verbalizers"),
        ("{subject}", "{subject", "line 2: template 'ticket: {subject'"),
        ("{subject}", "subject", "line 2: template 'ticket: subject' has no field in braces"),
        ("data:", "may_be_empty: [body]\ndata:", "line 4: unknown field of the template 'body'"),
        ("data:", "name: again\ndata:", "line 4: key 'name' twice; expected it once"),
        ("no: calm, ", "no: calm, no: cold, ", "line 3: key 'no' twice; expected it once"),
        ("data:", "test: x.jsonl\ndata:", "line 4: 'test' beside 'data'; expected either data"),
        ("data:", "train:", "no 'data' and of the parts only train; expected data, or train with"),
        ("data: tickets.jsonl\n", "", "no 'data' and of the parts only none; expected data"),
        (
            "tickets.jsonl",
            "gone.jsonl",
            "line 4: gone.jsonl is missing; expected a file, relative to the folder of the YAML",
        ),
        ("data:", "data: [\n", "line 6: broken YAML"),
        (YAML, "", "task.yaml: is empty; expected keys such as name"),
        (YAML, "just words", "task.yaml: is 'just words'; expected keys such as name"),
    ],
)
def test_a_wrong_yaml_is_refused_with_its_line(folder, old, new, sentence):
    assert old in YAML
    message = fails(folder, YAML.replace(old, new))
    assert message.startswith("task.yaml")
    assert sentence in message


def test_a_missing_yaml_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.yaml: the file is missing"):
        load_task(str(tmp_path / "none.yaml"))


def test_a_row_that_does_not_fit_the_yaml_is_named_in_its_own_file(folder):
    with (folder / "tickets.jsonl").open("a") as file:
        file.write('{"subject": "late", "label": "soon"}\n')
    assert fails(folder, YAML) == ("tickets.jsonl, line 21: label 'soon'; expected one of no, yes")


def test_a_column_the_yaml_asks_for_is_looked_for_in_the_head(tmp_path):
    (tmp_path / "t.csv").write_text("subject,label\nx,no\n")
    text = YAML.replace("tickets.jsonl", "t.csv") + "group: author\n"
    assert fails(tmp_path, text) == (
        "t.csv, line 1: no column 'author'; expected it beside subject, label"
    )


def test_too_few_rows_are_refused_with_the_file(folder):
    (folder / "tickets.jsonl").write_text('{"subject": "only", "label": "no"}\n')
    assert fails(folder, YAML).startswith("tickets.jsonl: 1 rows, none of which shares its label")


def test_a_folder_of_data_beside_a_yaml_is_refused(folder):
    with pytest.raises(ConfigError, match="which names its own files"):
        load(folder, data=folder)
