"""The tables of the evidence, from records alone."""

import recording
import tables

from told_runs import recorded, told_run


def test_the_page_s_tables_are_those_of_the_records():
    records = {path.stem: recording.read(path) for path in sorted(recording.RECORDS.glob("*.json"))}
    assert records
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.written_into(page, tables.tables_of(records)) == page


def test_a_table_holds_methods_against_one_prompt_by_shared_seeds_and_the_best_rate():
    mixture = {
        "name": "smop k=2",
        "load": [0.25, 0.75],
        "routing": {"worth": {"low": 1.0, "high": 3.0}},
    }
    record = recorded(
        told_run(0, [0, 1, 0, 0], **mixture, rate=0.5, validation=90.0),
        told_run(0, [0, 0, 0, 0], **mixture, validation=10.0),
        told_run(0, [1, 1, 0, 0]),
        told_run(1, [0, 0, 1, 1]),
    )
    *_, first, second = tables.table(record).splitlines()
    assert (
        first
        == "| single l=5 | 0.02, 1 | 1,000, 250, 16 | 50.0 ± 70.7 | 0.0, 100.0 |  |  |  | 1,234 |"
    )
    # 0.0 of the first's seed 0, and 25.0 of the better rate; of seed 1 the second has no run
    assert second.startswith("| smop k=2 | 0.5, 2 | 1,000, 250, 16 | 25.0 | 25.0 | +25.0 (")
    assert second.endswith("| +1.0 to +3.0 | 75 25 | 1,234 |")
    assert tables.hours(record) == 2.0


def test_another_recipe_or_option_is_a_row_of_its_own_and_no_difference_is_made_up():
    record = recorded(
        told_run(0, [0, 0, 1, 1], recipe="paper", rate=0.3),
        told_run(0, [0, 0, 1, 1], options={"dropout": False}),
        told_run(3, None),
    )
    usual, others = (tables.table(record, by_default=own).splitlines()[2:] for own in (True, False))
    assert [row.split(" | ")[0] for row in usual] == ["| single l=5"]
    assert [row.split(" | ")[0] for row in others] == [
        "| single l=5 dropout=False",
        "| single l=5, recipe paper",
    ]
    assert all(row.split(" | ")[5].strip() == "" for row in usual + others)


def test_a_task_in_a_row_is_what_took_as_many_steps_by_the_default_recipe():
    mixture, told = (
        {"name": "smop k=4 l=5 position=after routing=posterior"},
        {"name": "told position=after"},
    )
    record = recorded(
        told_run(0, [0, 0, 1, 1], name="single l=5 position=after"),
        told_run(1, [0, 0, 0, 1], name="single l=5 position=after"),
        told_run(0, [0, 0, 1, 1], name="single l=5 position=after", steps=2000),
        told_run(0, [0, 0, 0, 0], **mixture),
        told_run(0, [0, 0, 1, 1], **mixture, options={"schedule": "cosine"}),
        told_run(0, [0, 0, 0, 0], **told, evaluated_every=125),
        told_run(0, [0, 0, 1, 1], **told),
        told_run(1, [0, 0, 1, 1], **told),
        told_run(0, [0, 0, 1, 1], name="lora r=8", precision="bfloat16"),
        told_run(0, [0, 0, 1, 1], name="single l=20 position=after", steps=2000),
    )
    alone = recorded(told_run(0, [0, 0, 1, 1], **told))
    head, _, *rows = tables.summary(
        {**one, "task": "toy", "model": "tiny"} for one in (record, alone)
    ).splitlines()
    (row,) = (dict(zip(head.split(" | "), one.split(" | "), strict=True)) for one in rows)
    assert {name.strip("| "): cell for name, cell in row.items() if cell.strip("| ")} == {
        "task, backbone": "| `toy`, tiny",
        "steps": "1000",
        "one prompt, l=5": "87.5 ± 17.7 (2)",
        "mixture by posterior, k=4": "50.0 (1)",
        "told the source": "100.0 ± 0.0 (2)",
        "mixture less l=5": "-50.0 (-100.0 to +0.0)",
    }


def test_what_a_head_reads_has_rows_of_its_own():
    """Methods that change weights leave a head as it is, and stand in both."""
    own = {"options": {"pooling": "own"}}
    record = recorded(
        told_run(0, [0, 0, 1, 1]),
        told_run(0, [0, 0, 1, 0], **own),
        told_run(0, [0, 0, 0, 0], name="single l=20", **own),
        told_run(0, [1, 0, 1, 1], name="lora r=8"),
    )
    head, _, *rows = tables.summary([{**record, "task": "toy", "model": "tiny"}]).splitlines()
    found = [dict(zip(head.split(" | "), row.split(" | "), strict=True)) for row in rows]
    assert [row["| task, backbone"] for row in found] == [
        "| `toy`, tiny",
        "| `toy`, tiny, first token",
    ]
    assert [row["one prompt, l=5"] for row in found] == ["100.0 (1)", "75.0 (1)"]
    assert [row["one prompt, l=20"] for row in found] == ["", "50.0 (1)"]
    assert [row["LoRA, r=8"] for row in found] == ["75.0 (1)", "75.0 (1)"]
    each = tables.table(record)
    assert "single l=5, first token | 0.02" in each
    assert tables.table(record, by_default=False) == ""


def test_a_head_that_reads_the_mean_is_held_against_the_same_that_does_not():
    own = {"options": {"pooling": "own"}}
    record = recorded(
        told_run(0, [0, 0, 1, 1]),
        told_run(0, [0, 0, 0, 0], **own),
        told_run(1, [0, 0, 1, 0], **own),
        told_run(0, [0, 0, 1, 1], steps=500),
        told_run(0, [1, 0, 1, 1], name="lora r=8"),
    )
    _, _, *rows = tables.heads([{**record, "task": "toy", "model": "tiny"}]).splitlines()
    (row,) = rows
    said = "| `toy`, tiny | single l=5 | 1,000 | 62.5 ± 17.7 (2) | 100.0 (1) | +50.0 ("
    assert row.startswith(said)


def test_where_prompts_stand_has_rows_of_its_own_and_is_held_against_the_other_place():
    """Of an encoder, on which all stand before the text, nothing is said."""
    behind = {"name": "single l=5 position=after"}
    record = recorded(
        told_run(0, [0, 0, 1, 1], **behind),
        told_run(1, [0, 0, 1, 1], **behind),
        told_run(0, [0, 0, 0, 0]),
        told_run(0, [1, 0, 1, 1], name="lora r=8"),
        told_run(0, [0, 0, 0, 0], **behind, steps=500),
    )
    toys = [{**record, "task": "toy", "model": "tiny"}]
    head, _, *rows = tables.summary(toys).splitlines()
    found = [dict(zip(head.split(" | "), row.split(" | "), strict=True)) for row in rows]
    said = [(row["| task, backbone"], row["one prompt, l=5"], row["LoRA, r=8"]) for row in found]
    assert said == [
        ("| `toy`, tiny", "100.0 ± 0.0 (2)", "75.0 (1)"),
        ("| `toy`, tiny, before the text", "50.0 (1)", "75.0 (1)"),
    ]
    _, _, *rows = tables.places(toys).splitlines()
    (row,) = rows
    start = "| `toy`, tiny | single l=5 | 1,000 | 50.0 (1) | 100.0 ± 0.0 (2) | +50.0 ("
    assert row.startswith(start)
    # each place has its own reference, and what has no place the other prompts' usual one
    assert "| lora r=8 | 0.02, 1 | 1,000, 250, 16 | 75.0 | 75.0 | -25.0 (" in tables.table(record)
    encoder = recorded(told_run(0, [0, 0, 0, 0]))
    assert "before" not in tables.summary([{**encoder, "task": "toy", "model": "tiny"}])


def test_twice_the_steps_of_one_prompt_are_held_against_the_mixture():
    mixture = {"name": "smop k=4 l=5 routing=posterior", "load": [0.5, 0.5]}
    record = recorded(
        told_run(0, [0, 0, 1, 0], **mixture, steps=500),
        told_run(1, [0, 0, 1, 0], **mixture, steps=500),
        told_run(0, [0, 0, 1, 1], **mixture, steps=2000),
        told_run(0, [0, 0, 1, 1]),
        told_run(0, [0, 0, 0, 0], steps=500),
    )
    _, _, *rows = tables.equal_time([{**record, "task": "toy", "model": "tiny"}]).splitlines()
    (row,) = rows
    said = "| `toy`, tiny | 75.0 ± 0.0 (2), 500 | single l=5 100.0 (1) | 1,000 | -25.0 ("
    assert row.startswith(said)


def test_what_was_tried_with_one_prompt_is_told_by_rate_and_dropout():
    tried = (
        told_run(0, None, validation=70.0, rate=0.08),
        told_run(1, None, validation=72.0, rate=0.08),
        told_run(0, None, validation=60.0, rate=0.08, options={"dropout": True}),
        told_run(1, None, validation=50.0, recipe="paper", rate=0.5),
        told_run(0, None, rate=0.08, options={"schedule": "cosine"}),
        told_run(0, None, validation=90.0, options={"max_length": 8}),
        told_run(0, None, validation=40.0, rate=0.08, options={"pooling": "own"}),
        told_run(0, None, name="single l=20"),
    )
    head = {"task": "toy", "model": "minilm-l6"}
    said = "| toy, minilm-l6, 50.0 | single l=5 | 1,000, 250, 16 "
    assert tables.recipes([{**recorded(*tried), **head}]).splitlines()[2:] == [
        f"{said}| 0.08 | off | mean |  | default | 0: 70.0, 1: 72.0 | 71.0 |",
        f"{said}| 0.08 | off | mean | cosine |  | 0: 50.0 | 50.0 |",
        f"{said}| 0.08 | off | first token |  |  | 0: 40.0 | 40.0 |",
        f"{said}| 0.08 | on | mean |  |  | 0: 60.0 | 60.0 |",
        f"{said}| 0.5 | on | first token |  | paper | 1: 50.0 | 50.0 |",
    ]
    # of an unknown backbone no rate is the default
    head, unknown = {**head, "model": "other"}, said.replace("minilm-l6", "other")
    assert f"{unknown}| 0.08 | off |  |  |  |" in tables.recipes([{**recorded(*tried), **head}])
    # what drops nothing by itself has one row for each rate
    head, said = {**head, "model": "smollm2-135m"}, said.replace("minilm-l6", "smollm2-135m")
    assert tables.recipes([{**recorded(*tried[2:4], told_run(0, None)), **head}]).splitlines()[
        2:
    ] == [
        f"{said}| 0.02 | none |  |  |  | 0: 50.0 | 50.0 |",
        f"{said}| 0.08 | none |  |  |  | 0: 60.0 | 60.0 |",
        f"{said}| 0.5 | none |  |  | paper | 1: 50.0 | 50.0 |",
    ]


def test_unlike_runs_are_rows_of_their_own_and_the_reference_took_as_many_steps():
    record = recorded(
        told_run(0, [0, 0, 1, 1]),
        told_run(0, [1, 1, 1, 1], steps=100),
        told_run(0, [0, 0, 1, 1], name="single l=50", steps=100),
        told_run(0, [0, 0, 0, 0], name="lora", steps=100),
        told_run(1, [0, 0, 0, 0], name="lora", steps=100, batch=8),
        told_run(1, [0, 0, 1, 1], name="lora", steps=100, evaluated_every=20),
        told_run(0, [0, 0, 1, 1], precision="bfloat16", steps=100),
        told_run(0, [0, 0, 1, 1], name="lora", precision="bfloat16", steps=100),
    )
    rows = tables.table(record).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [
        "| single l=5",
        "| single l=5, bf16",
        "| single l=5",
        "| lora",
        "| lora",
        "| lora",
        "| lora, bf16",
        "| single l=50",
    ]
    # against one prompt in its own precision
    assert next(row for row in rows if "lora, bf16" in row).split(" | ")[5] == "+0.0 (+0.0 to +0.0)"
    assert any(
        row.split(" | ")[2] == "100, 250, 16" and "+50.0" in row for row in rows if "l=50" in row
    )
