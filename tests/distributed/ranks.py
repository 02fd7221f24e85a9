"""Two processes compute what one computes; prints, as JSON, how far their gradients are apart.

python ranks.py DIRECTORY        starts both; DIRECTORY is where they meet
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from peft_smop import SMoPConfig
from peft_smop.scoring import formulate
from peft_smop.tasks import Example, Task
from peft_smop.training import Rows, forward_backward
from saved import save
from tiny import KINDS, adapted, batch, without_dropout

ROWS = 8
OPTIONS = {"load_balancing": 0.5, "z_loss": 0.1}
WORDS = "the cat is red dog blue number one two three"


def rows_of(name, members):
    made = batch(KINDS[name], rows=ROWS)
    if name == "bert":
        made["labels"] = torch.arange(ROWS) % 2
    if name == "llama":
        made["labels"] = made["input_ids"].index_fill(1, torch.arange(4), -100)
        made["attention_mask"][:, 4:] = 1  # as many labels in every row
    return {key: value[members] for key, value in made.items()}


def model_of(name, **options):
    model = without_dropout(adapted(KINDS[name], **OPTIONS, **options)).train()
    model.smop_layer["default"].steps.fill_(3)
    return model


def gradients(model):
    """Of prompts and router, whole."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    adapter = inner.smop_layer["default"]
    found = [p.grad for p in (adapter.prompts, adapter.router)]
    return [g.full_tensor() if isinstance(g, DTensor) else g for g in found]


def alone(name, **options):
    model = model_of(name, **options)
    model(**rows_of(name, slice(None))).loss.backward()
    return gradients(model)


def data_parallel(name, rank, **options):
    """Each process has its half of the rows."""
    model = DistributedDataParallel(model_of(name, **options))
    own = rows_of(name, slice(rank, None, 2))
    model(**own).loss.backward()
    return gradients(model)


def fully_sharded(name, rank):
    model = model_of(name)
    base = model.get_base_model()
    blocks = {"llama": lambda: base.model.layers, "bert": lambda: base.bert.encoder.layer}[name]()
    for block in blocks:
        fully_shard(block)
    fully_shard(model)
    model(**rows_of(name, slice(rank, None, 2))).loss.backward()
    return gradients(model)


def tensor_parallel(rank):
    """Both processes have all rows and half of every layer."""
    model = model_of("llama")
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.get_base_model().model.layers:
        plan = {f"self_attn.{part}_proj": ColwiseParallel() for part in "qkv"}
        plan |= {"self_attn.o_proj": RowwiseParallel(), "mlp.down_proj": RowwiseParallel()}
        plan |= {f"mlp.{part}_proj": ColwiseParallel() for part in ("gate", "up")}
        parallelize_module(layer, mesh, plan)
    model(**rows_of("llama", slice(None))).loss.backward()
    return gradients(model)


def task_rows():
    """Rows whose answers have different numbers of tokens."""
    texts = [" ".join(WORDS.split()[i % 4 : 5 + i % 3]) for i in range(ROWS)]
    return [Example(str(i), text, i % 2) for i, text in enumerate(texts)]


def our_step(directory, rank):
    """The package's own step; the second process has fewer rows, and shorter answers."""
    task = Task("t", "{text}", ("a", "b"), ("one two three", "two"))
    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    examples = task_rows()

    def compute(members, wrap):
        base = without_dropout(AutoModelForSeq2SeqLM.from_pretrained(directory / "model"))
        formulation = formulate(task, base, tokenizer, task_type="SEQ_2_SEQ_LM", max_length=40)
        config = SMoPConfig(task_type="SEQ_2_SEQ_LM", **OPTIONS)
        model = wrap(get_peft_model(base, config).train())
        features = [formulation.encode(examples[i]) for i in members]
        (loss,) = forward_backward(model, formulation, [Rows(features)], max_padding=float("inf"))
        return loss, gradients(model)

    members = [range(5), range(5, ROWS)][rank]
    loss, found = compute(members, DistributedDataParallel)
    dist.all_reduce(loss)

    def whole():
        loss, found = compute(range(ROWS), lambda model: model)
        return [loss, *found]

    return [loss / 2, *found], whole


def apart(found, expected):
    assert all(e.abs().sum() > 0 for e in expected)
    return max(
        float((f - e).abs().max() / e.abs().max()) for f, e in zip(found, expected, strict=True)
    )


def work(rank, directory, answers):
    torch.set_num_threads(1)
    found = {}
    expected = {name: alone(name) for name in ("llama", "bert")}
    expected["gumbel"] = alone("bert", routing="gumbel")
    dist.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2)
    found["data parallel, encoder"] = apart(data_parallel("bert", rank), expected["bert"])
    found["data parallel, decoder"] = apart(data_parallel("llama", rank), expected["llama"])
    found["data parallel, gumbel"] = apart(
        data_parallel("bert", rank, routing="gumbel"), expected["gumbel"]
    )
    found["fully sharded, encoder"] = apart(fully_sharded("bert", rank), expected["bert"])
    found["fully sharded, decoder"] = apart(fully_sharded("llama", rank), expected["llama"])
    found["tensor parallel"] = apart(tensor_parallel(rank), expected["llama"])
    mine, whole = our_step(Path(directory), rank)
    dist.barrier()
    dist.destroy_process_group()
    found["the package's own step"] = apart(mine, whole())
    if rank == 0:
        Path(answers).write_text(json.dumps(found))


def main():
    directory = Path(sys.argv[1])
    save(KINDS["t5"], directory / "model", texts=[WORDS])
    answers = directory / "answers.json"
    os.environ["OMP_NUM_THREADS"] = "1"
    mp.spawn(work, args=(str(directory), str(answers)), nprocs=2)
    print(answers.read_text())


if __name__ == "__main__":
    main()
