"""What the benchmarks share: models, rows of text, an interleaved clock, records and their tables.

A record holds everything that was measured and under which conditions; a table is made from a
record alone. `python benchmarks/bench.py > benchmarks/records/README.md` makes all of them.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from peft import TaskType
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import Adafactor, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from peft_smop.costs import PeakMemory
from peft_smop.errors import SMoPError
from peft_smop.lab import environment
from peft_smop.methods import MethodSpec, Setting, build
from peft_smop.scoring import Features, Formulation, formulate
from peft_smop.tasks import Split, load_task

RECORDS = Path(__file__).parent / "records"
VOCABULARY = 32128
SHAPES = {
    "t5-small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "t5-base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "t5-large": {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
    "tiny": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
}
"""Of the published models; the weights are random, as time does not depend on their values."""
RANDOM = "random weights, inputs of random tokens without padding"
WORDS = "random weights; lengths of real texts, counted in words and punctuation marks"

Batch = dict[str, Tensor]
Call = Callable[[], object]


@dataclass(frozen=True)
class Line:
    """What was measured of one thing."""

    case: str
    """Lines of one case are compared with each other."""
    what: str
    seconds: list[float]
    """One for each round of the clock."""
    figures: dict[str, float] = field(default_factory=dict)
    """Further numbers; a name ends in its unit, unless it is a ratio."""
    scale: float = 1.0
    """Where a sample was timed: the whole over the sample, in tokens of text."""


@dataclass(frozen=True)
class Bar:
    """A limit that was set beforehand: for time over another line's, or for a figure."""

    case: str
    what: str
    limit: float
    over: str | None = None
    figure: str | None = None
    at_least: bool = False


@dataclass(frozen=True)
class Result:
    """What a benchmark found."""

    says: str
    """What stands above the table: what the conditions were."""
    per: str
    """What the seconds of a line are for, such as "step"."""
    over: tuple[str, ...]
    """The lines whose time the others' is divided by, in every case that has them."""
    lines: list[Line]
    bars: tuple[Bar, ...] = ()


def main(
    name: str,
    says: str | None,
    measure: Callable[[argparse.Namespace], Result],
    *,
    repeats: int,
    example: str = "",
    shapes: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Measure, write the record, print its table; or print the table of a record that is there.

    Args:
        name: of the benchmark and its record.
        says: the script's docstring.
        measure: from the options to what was found.
        repeats: rounds of the clock, by default.
        example: the options of an example.
        shapes: of the backbone, by name, the default first; T5's by default.
        options: the benchmark's own options and their defaults.
    """
    parser = argparse.ArgumentParser(
        description=says,
        epilog=f"example: python benchmarks/{name}.py {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = list(shapes or SHAPES)
    parser.add_argument("--model", default=names[0], choices=names, help="shape of the backbone")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds of the clock")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder of SuperGLUE; default: the hub")
    parser.add_argument("--output", type=Path, help=f"default: records/{name}-DEVICE.json")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print a record's table only")
    for option, default in options.items():
        kind = int if isinstance(default, int) else str
        parser.add_argument(f"--{option.replace('_', '-')}", type=kind, default=default)
    given = parser.parse_args()
    if given.table is not None:
        print(table(json.loads(given.table.read_text(encoding="utf-8"))))
        return
    if given.device == "auto":
        given.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(given.seed)
    try:
        result = measure(given)
    except SMoPError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    record = {"benchmark": name, **_conditions(given), **asdict(result)}
    output = given.output or RECORDS / f"{name}-{given.device}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    # one line for each key: a record is read by people too
    pairs = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in record.items())
    output.write_text("{\n" + ",\n".join(pairs) + "\n}\n", encoding="utf-8")
    print(table(record))


def _conditions(given: argparse.Namespace) -> dict[str, Any]:
    """The options, the commit, versions and hardware."""
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(
        describe, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    hidden = ("output", "table", "data", "seed")
    return {
        "config": {k: v for k, v in vars(given).items() if k not in hidden},
        "seed": given.seed,
        "commit": commit.stdout.strip() or None,
        "environment": environment(),
    }


def interleave(
    calls: Mapping[str, Call], repeats: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of every call, one for each round; rounds alternate in direction.

    Args:
        calls: what to time, by name.
        repeats: the number of rounds.
        warm_up: whether an uncounted round comes first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    if warm_up:
        for call in calls.values():
            call()
    for round_ in range(repeats):
        for name in list(calls)[:: -1 if round_ % 2 else 1]:
            _synchronise()
            started = time.perf_counter()
            calls[name]()
            _synchronise()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mib(call: Call) -> float:
    """The most memory a call needed, see `PeakMemory`; NaN where the system cannot tell."""
    memory = PeakMemory()
    memory.start()
    call()
    memory.stop()
    return float("nan") if memory.bytes is None else memory.bytes / 2**20


def backbone(given: argparse.Namespace) -> T5ForConditionalGeneration:
    """A frozen T5 with random weights, in training mode; bf16 on CUDA."""
    special = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    config = T5Config(vocab_size=VOCABULARY, **SHAPES[given.model], **special)
    model = T5ForConditionalGeneration(config).requires_grad_(False).train()
    return model.to(given.device, torch.bfloat16 if given.device == "cuda" else torch.float32)


def adapted(bare: nn.Module, name: str, *, kind: str = "SEQ_2_SEQ_LM", **options: Any) -> nn.Module:
    """A backbone with an adapter; frozen weights are shared with the one given.

    The same weights in the same pages: copies differ in speed by more than the methods do.
    """
    shared = {id(p): p for p in bare.parameters()} if name != "full" else {}
    setting = Setting(TaskType(kind), (), "", seed=0)
    return build(copy.deepcopy(bare, shared), MethodSpec(name=name, **options), setting)


def random_batch(given: argparse.Namespace, rows: int, tokens: int) -> Batch:
    """Random rows without padding, with answers of three tokens."""
    batch = {
        "input_ids": torch.randint(2, VOCABULARY, (rows, tokens)),
        "attention_mask": torch.ones(rows, tokens, dtype=torch.long),
        "labels": torch.randint(2, VOCABULARY, (rows, 3)),
    }
    return {name: tensor.to(given.device) for name, tensor in batch.items()}


def training_step(model: nn.Module, batch: Batch) -> Call:
    """Forward, backward and Adafactor, as a trainer does them."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = Adafactor(trained, lr=0.1, scale_parameter=False, relative_step=False)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def bare_step(model: nn.Module, batch: Batch) -> None:
    """The limit: the frozen backbone forward, and back to its input embeddings."""
    x = model.get_input_embeddings()(batch["input_ids"]).requires_grad_()
    model(inputs_embeds=x, labels=batch["labels"]).loss.backward()


def load_rows(given: argparse.Namespace, name: str, model: nn.Module) -> tuple[Split, Formulation]:
    """A task's examples, with words and punctuation marks as tokens.

    They stand in for T5's tokenizer, which would have to be downloaded.
    """
    data = given.data if name != "medley" else None
    task, split = load_task(name, data=data, seed=given.seed)
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = [example.text for example in (*split.train, *split.validation, *split.test)]
    special = ["<pad>", "</s>", "<unk>"]
    words.train_from_iterator(
        [*task.verbalizers, *texts],
        trainers.WordLevelTrainer(
            vocab_size=VOCABULARY, special_tokens=special, show_progress=False
        ),
    )
    words.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    kind = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "SEQ_CLS"
    kind = "CAUSAL_LM" if kind == "SEQ_CLS" and model.can_generate() else kind
    return split, formulate(task, model, tokenizer, task_type=kind, max_length=512)


def text_tokens(features: Sequence[Features]) -> int:
    """Tokens of text in rows, the end marks included."""
    return sum(len(f["input_ids"]) for f in features)


def unpadded(
    given: argparse.Namespace, formulation: Formulation, features: Sequence[Features], rows: int
) -> list[Batch]:
    """As many tokens as the rows have, in full batches without padding: nothing does with less.

    Rows sorted by length are cut into batches; each becomes one of random tokens whose rows all
    have the batch's mean length.
    """
    ordered = sorted(features, key=lambda f: len(f["input_ids"]))
    made = []
    for i in range(0, len(ordered), rows):
        own = ordered[i : i + rows]
        batch = random_batch(given, len(own), round(text_tokens(own) / len(own)))
        made.append({**batch, "labels": formulation.collate(own)["labels"].to(given.device)})
    return made


def on_device(given: argparse.Namespace, batch: Mapping[str, Tensor]) -> Batch:
    """A batch where the model is."""
    return {name: tensor.to(given.device) for name, tensor in batch.items()}


def matrix_rate(given: argparse.Namespace, size: int = 2048) -> float:
    """What the device reaches in one large matrix product, in operations a second."""
    size = size * 4 if given.device == "cuda" else size
    kind = torch.bfloat16 if given.device == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=given.device, dtype=kind) for _ in range(2))
    return 2 * size**3 / min(interleave({"product": lambda: a @ b}, 10)["product"])


def table(record: Mapping[str, Any]) -> str:
    """A record as a Markdown table: time, ratios with their quartiles, figures, bars."""
    lines, over = record["lines"], record["over"]
    by_key = {(line["case"], line["what"]): line for line in lines}
    figures = list(dict.fromkeys(name for line in lines for name in line["figures"]))
    head = ["case", "what", f"time per {record['per']}", *(f"over {o}" for o in over), *figures]
    rows = []
    for line in lines:
        references = [by_key.get((line["case"], other)) for other in over]
        bars = [b for b in record["bars"] if (b["case"], b["what"]) == (line["case"], line["what"])]
        rows.append(
            [
                line["case"],
                line["what"],
                _time(median(line["seconds"]) * line["scale"]),
                *("" if r is None or r is line else _spread(_ratios(line, r)) for r in references),
                *(f"{line['figures'][f]:.4g}" if f in line["figures"] else "" for f in figures),
                *(["; ".join(_verdict(b, line, by_key) for b in bars)] if record["bars"] else []),
            ]
        )
    head += ["bar"] if record["bars"] else []
    versions = record["environment"]
    conditions = (
        f"{record['benchmark']}: {record['config']['model']} on {versions['device']},"
        f" {versions['threads']} threads, torch {versions['torch']}, peft {versions['peft']};"
        f" {record['says']}. Medians of {record['config']['repeats']} interleaved rounds,"
        " quartiles in brackets."
    )
    marks = ["---"] * 2 + ["---:"] * (len(head) - 2)
    cells = [f"| {' | '.join(row)} |" for row in (head, marks, *rows)]
    return "\n".join([conditions, "", *cells])


def _ratios(line: Mapping[str, Any], reference: Mapping[str, Any]) -> list[float]:
    """Round by round, so that what slows a machine down for a while falls out."""
    scale = line["scale"] / reference["scale"]
    pairs = zip(line["seconds"], reference["seconds"], strict=True)
    return [scale * a / b for a, b in pairs]


def _spread(ratios: list[float]) -> str:
    if len(ratios) < 3:
        return _ratio(median(ratios))
    low, middle, high = map(_ratio, quantiles(ratios, n=4, method="inclusive"))
    return f"{middle} [{low}, {high}]"


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value >= 0.1 else f"{value:.2g}"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def _verdict(bar: Mapping[str, Any], line: Mapping[str, Any], by_key: Mapping[Any, Any]) -> str:
    """The value beside its limit, and whether it was met."""
    if bar["figure"] is not None:
        name, value = bar["figure"], line["figures"][bar["figure"]]
    else:
        reference = by_key[(bar["case"], bar["over"])]
        name, value = f"over {bar['over']}", median(_ratios(line, reference))
    met = value >= bar["limit"] if bar["at_least"] else value <= bar["limit"]
    sign = "≥" if bar["at_least"] else "≤"
    return f"{name}: {value:.3f}, {sign} {bar['limit']:g} {'met' if met else '**not met**'}"


if __name__ == "__main__":
    print("# What was measured\n\nMade from the records beside, by `python benchmarks/bench.py`.")
    for path in sorted(RECORDS.glob("*.json")):
        print(f"\n## {path.stem}\n\n{table(json.loads(path.read_text(encoding='utf-8')))}")
