"""Adapted models in EleutherAI's lm-evaluation-harness, as the model `smop`.

    python -m peft_smop.export.harness run --model smop --model_args pretrained=runs/tickets \
        --include_path exported --tasks smop_tickets

The harness scores a continuation behind a context. Its own models read both together, and so would
the router, which in training never saw an answer, where one has several tokens; here it reads the
context, and labels are scored by this package's scoring, as `smop evaluate` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from peft_smop.errors import ConfigError, unknown
from peft_smop.predictor import Predictor
from peft_smop.scoring import Formulation
from peft_smop.tasks import Example

OURS = ("pretrained", "batch_size", "task", "model", "device")
OF_EVERY_MODEL = ("max_batch_size",)
SAMPLING = ("temperature", "top_p", "top_k")
"""Options that mean something only where what is written is drawn."""
OF_GENERATION = ("until", "max_gen_toks", "do_sample", *SAMPLING)


@register_model("smop")
class SMoPLM(LM):
    """A run, or a saved adapter, of a decoder or an encoder-decoder.

    Args:
        pretrained: its directory.
        batch_size: contexts in a pass.
        task: for an adapter that was saved without its task.
        model: the backbone; by default the one that it was trained on.
        device: as torch names it.
        options: those that the harness hands to every model and that mean nothing here.

    Raises:
        ConfigError: the backbone is an encoder, the batch size is no number, or an option is
            unknown.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 32,
        task: str | None = None,
        model: str | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ConfigError(f"batch_size={batch_size!r} must be a whole number of at least 1")
        for name in options:
            if name not in OF_EVERY_MODEL:
                raise unknown("model argument", name, OURS)
        self.predictor = Predictor.load(
            pretrained,
            task=task,
            model=model,
            device=None if device is None else torch.device(device),
        )
        if self.predictor.kind == "SEQ_CLS":
            raise ConfigError(
                f"{pretrained} is on an encoder, whose head gives no probability of a text; score"
                " it with smop evaluate"
            )
        (loaded,) = self.predictor.adapters.values()
        self.formulation: Formulation = loaded.formulation
        self.batch_rows = int(batch_size)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Score continuations of contexts; all of one context are scored in one pass.

        An answer of the adapter's task is scored with its end, as it was trained; another
        continuation as it is.

        Args:
            requests: whose `args` are context and continuation.

        Returns:
            Of each its log-probability, and whether it is what would be written.
        """
        asked: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            asked.setdefault(request.args[0], []).append(place)
        said: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for contexts in _parts(asked, self.batch_rows):
            features: list[dict[str, Any]] = [
                {
                    "input_ids": self._context(context),
                    "answers": [self._answer(requests[i].args[1]) for i in asked[context]],
                }
                for context in contexts
            ]
            with torch.inference_mode():
                scores = self.formulation.label_scores(self.predictor.model, features)
            written = self._greedy(features)
            for row, context in enumerate(contexts):
                for column, place in enumerate(asked[context]):
                    answer = features[row]["answers"][column]
                    score = float(scores.log_probabilities[row, column])
                    said[place] = (score, written[row][: len(answer)] == answer)
        return said

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Refuse: a text that is scored itself leaves the router nothing to read.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "the perplexity of whole texts is not offered: the router reads a context, and these"
            " tasks have none"
        )

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Write after contexts.

        Args:
            requests: whose `args` are a context and options, among them `until`.
        """
        written = []
        for request in requests:
            context, options = request.args
            for name in options:
                if name not in OF_GENERATION:
                    raise unknown("generation option", name, OF_GENERATION)
            samples = bool(options.get("do_sample", options.get("temperature", 0) > 0))
            drawn = {key: options[key] for key in SAMPLING if key in options} if samples else {}
            stops = options.get("until") or []
            (text,) = self.predictor.generate(
                [context],
                raw=True,
                max_new_tokens=int(options.get("max_gen_toks", 256)),
                do_sample=samples,
                **drawn,
            )
            for stop in [stops] if isinstance(stops, str) else stops:
                text = text.split(stop)[0] if stop else text
            written.append(text)
        return written

    def _context(self, context: str) -> list[int]:
        """The tokens of a context; with the task's cue at its end those that were trained."""
        if not context.strip():
            raise ConfigError("a request has an empty context, which the router cannot read")
        if not context.endswith(self.formulation.cue):
            return self.formulation.plain(context)
        text = context.removesuffix(self.formulation.cue)
        return self.formulation.encode(Example("request", text, None))["input_ids"]

    def _answer(self, continuation: str) -> list[int]:
        """The tokens of a continuation."""
        words = self.formulation.task.verbalizers
        if continuation.strip() in words:
            return self.formulation.answers[words.index(continuation.strip())]
        tokenizer = self.formulation.tokenizer
        return tokenizer(continuation, add_special_tokens=False)["input_ids"]

    def _greedy(self, features: Sequence[dict[str, Any]]) -> list[list[int]]:
        """What is written after each context, at least as long as its longest answer."""
        model: Any = self.predictor.model
        decodes = self.predictor.kind == "CAUSAL_LM"
        batch = self.predictor.tokenizer.pad(
            {"input_ids": [f["input_ids"] for f in features]},
            padding_side="left" if decodes else "right",
            return_tensors="pt",
        ).to(model.device)
        longest = max(len(answer) for f in features for answer in f["answers"])
        with torch.inference_mode():
            written = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=longest,
                do_sample=False,
            )
        # an encoder-decoder's begins with the token that starts it
        return written[:, batch["input_ids"].shape[1] if decodes else 1 :].tolist()


def _parts(contexts: Iterable[str], size: int) -> Iterator[list[str]]:
    every = list(contexts)
    for begin in range(0, len(every), size):
        yield every[begin : begin + size]


def main() -> None:
    """The harness's own command, which then knows the model `smop`."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
