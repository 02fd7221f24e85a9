import json
from collections import Counter

import pytest

from peft_smop.errors import DataError
from peft_smop.tasks import CATALOGUE, load_task
from peft_smop.tasks.superglue import SUPERGLUE

RTE = {"premise": "It rained.", "hypothesis": "It was wet.", "label": "entailment"}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def benchmark(tmp_path):
    """Twenty rows of RTE in the official layout."""
    labels = ("entailment", "not_entailment")
    for file, count in (("train.jsonl", 20), ("val.jsonl", 4)):
        rows = [RTE | {"label": labels[i % 2], "idx": i} for i in range(count)]
        write(tmp_path / "all/RTE" / file, rows)
    return tmp_path / "all"


def fails(name, data):
    with pytest.raises(DataError) as caught:
        load_task(name, data=data)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "fields", "text"),
    [
        (
            "boolq",
            {"passage": "P", "question": "Q"},
            "boolq passage: P question: Q",
        ),
        ("cb", {"premise": "P", "hypothesis": "H"}, "cb hypothesis: H . premise: P"),
        (
            "copa",
            {"premise": "P", "choice1": "A", "choice2": "B", "question": "cause"},
            "copa choice1: A choice2: B premise: P question: cause",
        ),
        (
            "multirc",
            {"paragraph": "P", "question": "Q", "answer": "A"},
            "multirc question: Q answer: A . paragraph: P",
        ),
        ("rte", {"premise": "P", "hypothesis": "H"}, "rte sentence1: P sentence2: H"),
        (
            "wic",
            {"sentence1": "A", "sentence2": "B", "word": "W"},
            "wic sentence1: A sentence2: B word: W",
        ),
    ],
)
def test_the_templates_are_those_of_table_6(name, fields, text):
    assert CATALOGUE[name].task.render(fields) == text


def test_the_verbalizers_are_those_of_table_6():
    assert {name: CATALOGUE[name].task.verbalizers for name in SUPERGLUE} == {
        "boolq": ("False", "True"),
        "cb": ("entailment", "contradiction", "neutral"),
        "copa": ("choice1", "choice2"),
        "multirc": ("False", "True"),
        "rte": ("entailment", "not_entailment"),
        "wic": ("False", "True"),
    }


def test_multirc_is_scored_by_f1_and_the_others_by_accuracy():
    metrics = {name: entry.task.metric for name, entry in CATALOGUE.items()}
    assert metrics.pop("multirc") == "f1"
    assert set(metrics.values()) == {"accuracy"}


def test_the_folder_of_the_benchmark_or_of_the_task_may_be_given(benchmark):
    whole = load_task("rte", data=benchmark).split
    (benchmark / "RTE").rename(benchmark / "rte")
    lower = load_task("rte", data=benchmark).split
    direct = load_task("rte", data=benchmark / "rte").split
    assert whole.train == lower.train == direct.train
    (benchmark / "rte").rename(benchmark / "elsewhere")
    assert load_task("rte", data=benchmark / "elsewhere").split.train == whole.train
    assert (len(whole.train), len(whole.validation), len(whole.test)) == (18, 2, 4)


def test_multirc_becomes_one_row_for_each_answer_option(tmp_path):
    def passage(i):
        answers = [{"text": f"a{j}", "idx": 2 * i + j, "label": j} for j in range(2)]
        questions = [{"question": f"q{i}", "idx": i, "answers": answers}]
        return {"idx": i, "passage": {"text": f"p{i}", "questions": questions}}

    for file in ("train.jsonl", "val.jsonl"):
        write(tmp_path / file, [passage(i) for i in range(12)])
    split = load_task("multirc", data=tmp_path).split
    example = split.test[7]
    assert (example.id, example.group, example.label) == ("3-3-7", "3", 1)
    assert example.text == "multirc question: q3 answer: a1 . paragraph: p3"
    assert {e.group for e in split.train}.isdisjoint({e.group for e in split.validation})


def test_two_answers_of_one_id_on_one_line_are_refused(tmp_path):
    answers = [{"text": "a", "idx": 0, "label": 0}, {"text": "b", "idx": 0, "label": 1}]
    passage = {"text": "p", "questions": [{"question": "q", "idx": 0, "answers": answers}]}
    write(tmp_path / "train.jsonl", [{"idx": 0, "passage": passage}])
    assert "line 1: idx '0-0-0' was already that of line 1" in fails("multirc", tmp_path)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"idx": 0, "passage": "flat"}, "'passage' is 'flat' beside idx, passage; expected a JSON"),
        ({"idx": 0}, "no field 'passage' beside idx; expected a JSON object"),
        ({"idx": 0, "passage": {"text": "p"}}, "no field 'questions' beside text; expected a JSON"),
        (
            {"idx": 0, "passage": {"text": "p", "questions": ["q"]}},
            "'q' where 'answers' is looked for; expected a JSON object",
        ),
    ],
)
def test_multirc_nested_otherwise_is_refused(tmp_path, row, sentence):
    write(tmp_path / "train.jsonl", [row])
    assert fails("multirc", tmp_path).startswith(f"{tmp_path}/train.jsonl, line 1: {sentence}")


def test_a_missing_folder_names_what_was_looked_for(tmp_path):
    assert fails("rte", tmp_path / "gone") == (
        f"{tmp_path}/gone: the folder is missing; "
        f"expected {tmp_path}/gone/RTE with train.jsonl, val.jsonl"
    )


def test_an_empty_folder_names_what_was_looked_for(tmp_path):
    assert fails("wic", tmp_path) == (
        f"{tmp_path}: the folder is empty; expected {tmp_path}/WiC with train.jsonl, val.jsonl"
    )


def test_a_folder_without_the_task_lists_what_it_has(benchmark):
    assert fails("cb", benchmark) == (
        f"{benchmark}: no folder 'CB' among RTE; "
        f"expected {benchmark}/CB with train.jsonl, val.jsonl"
    )


def test_a_file_in_place_of_the_folder_is_refused(benchmark):
    assert ": is a file; expected " in fails("rte", benchmark / "RTE/train.jsonl")


def test_the_folder_of_another_task_is_not_taken(benchmark):
    assert "no folder 'CB' among train.jsonl, val.jsonl" in fails("cb", benchmark / "RTE")


def test_a_missing_file_lists_what_the_folder_has(benchmark):
    (benchmark / "RTE/train.jsonl").unlink()
    assert fails("rte", benchmark) == (
        f"{benchmark}/RTE/train.jsonl: the file is missing, the folder holds val.jsonl; "
        "expected the official train.jsonl, val.jsonl of RTE"
    )


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (RTE | {"idx": 0, "label": "neutral"}, "label 'neutral'; expected one of entailment, not_"),
        (RTE | {"idx": 0, "premise": ""}, "field 'premise' is empty; expected a text"),
        (RTE | {"idx": 0, "premise": None}, "field 'premise' is None; expected a text"),
        (RTE, "no field 'idx' beside premise, hypothesis, label; expected it"),
        ({"idx": 0, "label": "entailment"}, "no field 'premise' beside idx, label; expected premi"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(benchmark, row, sentence):
    write(benchmark / "RTE/val.jsonl", [RTE | {"idx": 9}, row])
    assert fails("rte", benchmark).startswith(f"{benchmark}/RTE/val.jsonl, line 2: {sentence}")


@pytest.mark.data
def test_the_missing_train_file_of_boolq_is_named(superglue_dir):
    if (superglue_dir / "BoolQ/train.jsonl").exists():
        pytest.skip("BoolQ is complete here")
    assert fails("boolq", superglue_dir).startswith(
        f"{superglue_dir}/BoolQ/train.jsonl: the file is missing"
    )


@pytest.mark.data
def test_the_validation_set_of_boolq_has_its_official_size(superglue_dir, tmp_path):
    official = (superglue_dir / "BoolQ/val.jsonl").read_bytes()
    for file in ("train.jsonl", "val.jsonl"):
        (tmp_path / file).write_bytes(official)
    split = load_task("boolq", data=tmp_path).split
    assert Counter(example.label for example in split.test) == {1: 2033, 0: 1237}


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "train", "validation", "test"),
    [
        ("cb", {0: 115, 1: 119, 2: 16}, 25, {0: 23, 1: 28, 2: 5}),
        ("copa", {0: 195, 1: 205}, 40, {0: 55, 1: 45}),
        ("rte", {0: 1249, 1: 1241}, 249, {0: 146, 1: 131}),
        ("wic", {0: 2714, 1: 2714}, 543, {0: 319, 1: 319}),
    ],
)
def test_the_official_files_have_their_official_counts(
    superglue_dir, name, train, validation, test
):
    split = load_task(name, data=superglue_dir).split
    assert Counter(e.label for e in (*split.train, *split.validation)) == train
    assert len(split.validation) == validation
    assert Counter(example.label for example in split.test) == test


@pytest.mark.data
def test_multirc_has_its_official_counts_and_keeps_passages_whole(superglue_dir):
    split = load_task("multirc", data=superglue_dir).split
    pool = (*split.train, *split.validation)
    for examples, passages, questions, answers in (
        (pool, 456, 5131, 27243),
        (split.test, 83, 953, 4848),
    ):
        assert len(examples) == answers
        assert len({example.group for example in examples}) == passages
        assert len({example.id.rsplit("-", 1)[0] for example in examples}) == questions
    assert {e.group for e in split.train}.isdisjoint({e.group for e in split.validation})
    assert abs(len(split.validation) - 2724) < 80
    assert split.test[0].id == "0-0-0"
    assert split.test[0].text.startswith(
        "multirc question: Would the mass of a baseball affect how much force you have to use to "
        "pick it up? answer: No . paragraph: What causes a change in motion? The application of a "
        "force. Any time"
    )
    assert [example.label for example in split.test[:4]] == [0, 1, 1, 0]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "text", "verbalizer"),
    [
        (
            "cb",
            "cb hypothesis: Valence was helping . premise: Valence the void-brain, Valence the "
            "virtuous valet. Why couldn't the figger choose his own portion of titanic anatomy to "
            "shaft? Did he think he was helping?",
            "contradiction",
        ),
        (
            "copa",
            "copa choice1: The toilet filled with water. choice2: Water flowed from the spout. "
            "premise: The man turned on the faucet. question: effect",
            "choice2",
        ),
        (
            "rte",
            "rte sentence1: Dana Reeve, the widow of the actor Christopher Reeve, has died of lung "
            "cancer at age 44, according to the Christopher Reeve Foundation. sentence2: "
            "Christopher Reeve had an accident.",
            "not_entailment",
        ),
        (
            "wic",
            "wic sentence1: An emerging professional class. sentence2: Apologizing for losing your "
            "temper, even though you were badly provoked, showed real class. word: class",
            "False",
        ),
    ],
)
def test_the_first_official_validation_row_is_rendered(superglue_dir, name, text, verbalizer):
    task, split = load_task(name, data=superglue_dir)
    assert split.test[0].text == text
    assert task.verbalizers[split.test[0].label] == verbalizer
