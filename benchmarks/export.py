"""How far what was exported is from the model: ONNX graphs, lm-evaluation-harness, llama.cpp.

python benchmarks/export.py onnx RUN [--examples 300]
python benchmarks/export.py lm-eval RUN [--examples 100]
python benchmarks/export.py llama.cpp ADAPTER --gguf FILE --texts FILE

The first labels the run's test examples by the graphs alone and by the model. The second compares
every label's log-probability in the harness with this package's. The third compares the verdict on
the next token, with prompts and without any: llama.cpp computes with quantised weights, so the
second is what it differs by anyway.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch


def compare_onnx(run: str, examples: int) -> dict[str, Any]:
    """Label test examples by the graphs and by the model."""
    import onnxruntime

    from peft_smop.export import export
    from peft_smop.lab import load_trained, part_of_task
    from peft_smop.scoring import predict

    trained = load_trained(Path(run))
    chosen = part_of_task(trained, "test").examples[:examples]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        manifest = export(run, out, format="onnx")
        graphs = {
            name: onnxruntime.InferenceSession(str(out / name), providers=["CPUExecutionProvider"])
            for name in manifest["graphs"]
        }
        found = [
            _scores(graphs, manifest, trained.formulation.encode(e)["input_ids"]) for e in chosen
        ]
    expected = [p.log_probabilities for p in predict(trained.model, trained.formulation, chosen)]
    own, other = np.array(found), np.array(expected)
    return {
        "examples": len(chosen),
        "labels equal": int((own.argmax(1) == other.argmax(1)).sum()),
        "largest difference of a log-probability": float(np.abs(own - other).max()),
    }


def _scores(graphs: dict[str, Any], manifest: dict[str, Any], ids: list[int]) -> np.ndarray:
    """The log-probability of every label after one text, by the graphs alone."""
    one = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), dtype=np.int64)}
    if manifest["kind"] == "SEQ_CLS":
        return _log_softmax(graphs["classifier.onnx"].run(["logits"], one)[0])[0]
    scores = []
    states = None
    if manifest["kind"] == "SEQ_2_SEQ_LM":
        (states,) = graphs["encoder.onnx"].run(["encoder_hidden_states"], one)
    for answer in manifest["answers"]:
        if states is None:
            whole = np.array([[*ids, *answer]])
            mask, text = np.ones_like(whole), np.zeros_like(whole)
            text[:, : len(ids)] = 1
            given = {"input_ids": whole, "attention_mask": mask, "text_mask": text}
            logits = graphs["decoder.onnx"].run(["logits"], given)[0][0, len(ids) - 1 : -1]
        else:
            written = np.array([[manifest["decoder_start_token_id"], *answer[:-1]]])
            given = {
                "decoder_input_ids": written,
                "encoder_hidden_states": states,
                "attention_mask": one["attention_mask"],
            }
            logits = graphs["decoder.onnx"].run(["logits"], given)[0][0]
        scores.append(_log_softmax(logits)[range(len(answer)), answer].sum())
    return np.array(scores)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().log_softmax(dim=-1).numpy()


def compare_harness(run: str, examples: int) -> dict[str, Any]:
    """Score test examples in the harness, by its model `smop` and by its own, and here."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from peft_smop.export import export
    from peft_smop.export.harness import SMoPLM
    from peft_smop.lab import load_trained, part_of_task
    from peft_smop.scoring import predict

    trained = load_trained(Path(run))
    chosen = part_of_task(trained, "test").examples[:examples]
    expected = predict(trained.model, trained.formulation, chosen)
    right = sum(e.label == p.label for e, p in zip(chosen, expected, strict=True))
    said: dict[str, Any] = {"examples": len(chosen), "right here": right}
    kind = "seq2seq" if trained.formulation.task_type == "SEQ_2_SEQ_LM" else "causal"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        name = export(run, out, format="lm-eval")["task"]
        models = {
            "smop": SMoPLM(run),
            "HFLM": HFLM(
                pretrained=trained.model.eval(),
                tokenizer=trained.formulation.tokenizer,
                backend=kind,
                max_length=trained.formulation.max_length,
                batch_size=8,
            ),
        }
        for title, model in models.items():
            found = lm_eval.simple_evaluate(
                model=model,
                tasks=[name],
                limit=len(chosen),
                bootstrap_iters=0,
                task_manager=TaskManager(include_path=str(out)),
            )
            said[f"right by {title}"] = round(len(chosen) * found["results"][name]["acc,none"])
            samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
            scores = np.array([[float(r[0][0]) for r in s["resps"]] for s in samples])
            ours = np.array([p.log_probabilities for p in expected])
            said[f"largest difference by {title}"] = float(np.abs(scores - ours).max())
    return said


def compare_llama(adapter: str, gguf: str, texts: list[str]) -> dict[str, Any]:
    """Compare the next token's logits, with prompts and without."""
    from peft_smop import Predictor
    from peft_smop.export import PromptedTexts, export

    with tempfile.TemporaryDirectory() as folder:
        export(adapter, Path(folder) / "out", format="llama.cpp")
        exported = PromptedTexts.load(Path(folder) / "out")
    predictor = Predictor.load(adapter, device=torch.device("cpu"))
    model: Any = predictor.model
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"prompted": [], "bare": []}
    rows, ours = [], []
    for text in texts:
        ids = torch.tensor([exported.tokens(text)])
        rows += [exported.prompted(text).embeddings, exported.table[ids[0]]]
        with torch.no_grad():
            ours.append(model(input_ids=ids).logits[0, -1].float().numpy())
            with model.disable_adapter():
                ours.append(model(input_ids=ids).logits[0, -1].float().numpy())
    theirs = _llama_logits(gguf, [row.float().numpy() for row in rows])
    for place, pair in enumerate(zip(ours, theirs, strict=True)):
        pairs["bare" if place % 2 else "prompted"].append(pair)
    return {
        title: {
            "texts": len(own),
            "same next token": sum(int(a.argmax() == b.argmax()) for a, b in own),
            "largest difference of a logit": max(float(np.abs(a - b).max()) for a, b in own),
            "mean KL divergence": float(np.mean([_divergence(a, b) for a, b in own])),
        }
        for title, own in pairs.items()
    }


def _divergence(a: np.ndarray, b: np.ndarray) -> float:
    p, q = _log_softmax(a), _log_softmax(b)
    return float((np.exp(p) * (p - q)).sum())


def _llama_logits(gguf: str, rows: list[np.ndarray]) -> list[np.ndarray]:
    """What llama.cpp says of the token after each row of embeddings."""
    import llama_cpp as llama

    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(gguf.encode(), llama.llama_model_default_params())
    options = llama.llama_context_default_params()
    options.n_ctx = max(map(len, rows)) + 8
    context = llama.llama_init_from_model(model, options)
    size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    said = []
    for row in rows:
        x = np.ascontiguousarray(row, dtype=np.float32)
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        batch = llama.llama_batch_init(len(x), x.shape[1], 1)  # room for embeddings, not tokens
        batch.n_tokens = len(x)
        ctypes.memmove(batch.embd, x.ctypes.data, x.nbytes)
        for place in range(len(x)):
            batch.pos[place], batch.n_seq_id[place] = place, 1
            batch.seq_id[place][0] = 0
            batch.logits[place] = place == len(x) - 1
        if llama.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        last = llama.llama_get_logits_ith(context, -1)
        said.append(np.ctypeslib.as_array(last, shape=(size,)).copy())
        llama.llama_batch_free(batch)
    return said


def main() -> None:
    """Compare, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["onnx", "lm-eval", "llama.cpp"])
    parser.add_argument("adapter", help="a run's directory; for llama.cpp also an adapter's")
    parser.add_argument("--examples", type=int, default=10**9)
    parser.add_argument("--gguf", help="the backbone for llama.cpp")
    parser.add_argument("--texts", type=Path, help="for llama.cpp: a text a line")
    asked = parser.parse_args()
    if asked.what == "onnx":
        said = compare_onnx(asked.adapter, asked.examples)
    elif asked.what == "lm-eval":
        said = compare_harness(asked.adapter, asked.examples)
    else:
        if asked.gguf is None or asked.texts is None:
            parser.error("llama.cpp needs --gguf and --texts")
        lines = asked.texts.read_text(encoding="utf-8").splitlines()
        said = compare_llama(asked.adapter, asked.gguf, [line for line in lines if line.strip()])
    print(json.dumps(said, indent=2))


if __name__ == "__main__":
    main()
