"""How faithful shares by passage are, beside other attributions: what hiding a passage changes.

    python tests/peers/faithfulness.py

A small Llama is trained here to recall a fact from twelve passages, another one to answer from two
of them at once, and a third one to name the word before the last. Each method gives every passage a
score for the tokens of the answer. All are judged by the same ablation, which masks the keys of a
passage and leaves positions:

- the drop of the answer's mean log probability with the best passage hidden, and with the best
  three, so that all methods retain an equal share of the tokens;
- the correlation over random halves hidden between the drop and the sum of the hidden scores.

Errors are standard errors over the examples. "Each hidden in turn" is the measure itself, and its
cost is one run a passage; no method is expected to beat it by much.
"""

from __future__ import annotations

import functools
import itertools
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from other_backtesters import ask_peer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tracepaper.replay.bench.machine import machine_line
from tracepaper.strategies import attention

EXAMPLES, LEARNED, HALVES = 200, 400, 32
END, ASKS, KEYS, NOISE = 0, 1, 16, 40
"""The words of end and of a question; then so many keys and idle words."""
FIRST_ANSWER: Final = 2 + KEYS


@dataclass(frozen=True)
class Example:
    """A prompt of passages and its answer, as tokens."""

    prompt: list[int]
    answer: list[int]
    spans: list[range]

    @property
    def tokens(self) -> Tensor:
        """Prompt and answer, int64 [1, token]."""
        return torch.tensor([[*self.prompt, *self.answer]])

    @property
    def askers(self) -> range:
        """The positions that predict the answer's tokens."""
        return range(len(self.prompt) - 1, len(self.prompt) + len(self.answer) - 1)


@dataclass(frozen=True)
class Task:
    """Twelve passages of eight words with a fact each, and questions about *places* of them.

    A fact is one word, of a key and its value, and an answer one word, of a value for each place.
    """

    name: str
    values: int
    places: int
    steps: int  # of training

    @property
    def first_idle(self) -> int:
        """The first of the idle words, which follow those of answers."""
        return FIRST_ANSWER + int(self.values**self.places)

    @property
    def first_fact(self) -> int:
        """The first of the words of facts."""
        return self.first_idle + NOISE

    @property
    def words(self) -> int:
        """How many words there are."""
        return self.first_fact + KEYS * self.values

    def asked(
        self, draw: random.Random, questions: int
    ) -> tuple[list[int], list[Any], list[range]]:
        """Return passages, so many *questions* with answers, and the spans of passages."""
        prompt: list[int] = []
        facts, spans = [], []
        for key in draw.sample(range(KEYS), 12):
            value = draw.randrange(self.values)
            passage = draw.choices(range(self.first_idle, self.first_fact), k=8)
            passage[draw.randrange(8)] = self.first_fact + key * self.values + value
            facts.append((2 + key, value))
            spans.append(range(len(prompt), len(prompt) + 8))
            prompt += passage
        chosen = draw.sample(facts, self.places * questions)
        told = []
        for start in range(0, len(chosen), self.places):
            of_one = chosen[start : start + self.places]
            answer = functools.reduce(lambda held, fact: held * self.values + fact[1], of_one, 0)
            told.append([ASKS, *(key for key, _ in of_one), FIRST_ANSWER + answer])
        return prompt, told, spans

    def example(self, draw: random.Random) -> Example:
        """Draw a prompt that ends in a question, and its answer."""
        prompt, (question,), spans = self.asked(draw, 1)
        return Example([*prompt, *question[:-1]], question[-1:], spans)

    def batch(self, draw: random.Random) -> tuple[Tensor, Tensor]:
        """Draw 32 prompts with questions, int64 [32, word], and which words are answers."""
        rows = []
        for _ in range(32):
            prompt, questions, _ = self.asked(draw, 6)
            rows.append([*prompt, *itertools.chain(*questions)])
        tokens = torch.tensor(rows)
        return tokens, (tokens >= FIRST_ANSWER) & (tokens < self.first_idle)


@dataclass(frozen=True)
class Neighbour(Task):
    """Twelve passages of eight idle words, and the word before the last as the answer."""

    def _row(self, draw: random.Random) -> list[int]:
        """Draw words of which every fourth answers."""
        row = draw.choices(range(self.first_idle, self.first_idle + self.values), k=97)
        for place in range(4, 97, 4):
            row[place] = FIRST_ANSWER + row[place - 2] - self.first_idle
        return row

    def example(self, draw: random.Random) -> Example:
        """Draw a prompt and its answer."""
        *prompt, answer = self._row(draw)
        return Example(prompt, [answer], [range(at, at + 8) for at in range(0, 96, 8)])

    def batch(self, draw: random.Random) -> tuple[Tensor, Tensor]:
        """Draw 32 rows of words, int64 [32, word], and which words are answers."""
        tokens = torch.tensor([self._row(draw) for _ in range(32)])
        return tokens, tokens < self.first_idle


RECALL: Final = Task("recall of one fact", values=24, places=1, steps=3_000)
TWO: Final = Task("an answer of two facts", values=5, places=2, steps=1_000)
NEIGHBOUR: Final = Neighbour("the word before the last", values=24, places=1, steps=400)


def trained(task: Task) -> LlamaForCausalLM:
    """Train a Llama of four layers for *task*."""
    torch.manual_seed(0)
    draw = random.Random(0)
    config = LlamaConfig(
        vocab_size=task.words, hidden_size=96, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=512, eos_token_id=END, bos_token_id=END,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, task.steps)
    for step in range(task.steps):
        rows, asked = task.batch(draw)
        logits, asked = model(rows[:, :-1]).logits, asked[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits[asked], rows[:, 1:][asked])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0 or step == task.steps - 1:
            print(f"  step {step}: {loss.item():.3f} nats a token", flush=True)
    model.train(mode=False)
    return model


@torch.no_grad()
def log_probability(model: LlamaForCausalLM, example: Example, hidden: Tensor) -> Tensor:
    """Return the answer's mean log probability with the passages *hidden*, bool [case, passage]."""
    tokens = example.tokens
    count = tokens.shape[1] - 1
    seen = torch.ones(len(hidden), count, dtype=torch.bool)
    for place, span in enumerate(example.spans):
        seen[:, span.start : span.stop] = ~hidden[:, place, None]
    mask = seen[:, None, None] & torch.ones(count, count, dtype=torch.bool).tril()
    mask = mask | torch.eye(count, dtype=torch.bool)  # a hidden token sees itself
    logits = model(tokens[:, :-1].expand(len(hidden), -1), attention_mask=mask).logits
    chosen = logits.log_softmax(-1)[:, list(example.askers)]
    return chosen.gather(2, tokens[:, len(example.prompt) :].expand(len(hidden), -1)[..., None])[
        ..., 0
    ].mean(1)


def in_spans(example: Example, of_tokens: Tensor) -> Tensor:
    """Sum the scores *of_tokens* [token] by passage."""
    return torch.stack([of_tokens[span.start : span.stop].sum() for span in example.spans])


class Methods:
    """Each gives the passages of an example their scores."""

    def __init__(self, model: LlamaForCausalLM, draw: torch.Generator) -> None:
        self.model = model
        self.draw = draw

    def _looked(self, example: Example) -> attention.Passages:
        with torch.no_grad(), attention.capture(self.model) as captured:
            self.model(example.tokens[:, :-1])
        return captured.passages({str(at): span for at, span in enumerate(example.spans)})

    def shares(self, example: Example) -> Tensor:
        """Return ``captured.passages``."""
        looked = self._looked(example)
        return looked.shares[0, list(example.askers), : len(example.spans)].mean(0)

    def content(self, example: Example) -> Tensor:
        """Return the shares less those that mask and positions alone give."""
        looked = self._looked(example)
        change = looked.shares - looked.content_free
        return change[0, list(example.askers), : len(example.spans)].mean(0)

    def by_gradient(self, example: Example) -> Tensor:
        """Return the rollout of heads weighed by the gradient (Chefer)."""
        with attention.capture(self.model, backward=True) as captured:
            score = self._score(self.model(example.tokens[:, :-1]).logits, example)
            captured.gradient(score)
        method = attention.Rollout(fusion="gradient")
        weights = captured.rollout(list(example.askers), method).weights["tokens"]
        return in_spans(example, weights[0].mean(0))

    def relevance(self, example: Example) -> Tensor:
        """Return the relevance, signed (AttnLRP)."""
        embedded = self.model.get_input_embeddings()(example.tokens[:, :-1]).detach()
        embedded.requires_grad_()
        with attention.relevance_rules(self.model):
            score = self._score(self.model(inputs_embeds=embedded).logits, example)
            relevant = attention.relevance(score, embedded).sum(-1)[0]
        return in_spans(example, relevant)

    def recency(self, example: Example) -> Tensor:
        """Return a score that grows with the position."""
        return torch.arange(len(example.spans), dtype=torch.float64)

    def chance(self, example: Example) -> Tensor:
        """Return random scores."""
        return torch.rand(len(example.spans), generator=self.draw)

    def in_turn(self, example: Example) -> Tensor:
        """Return the measured drop with each passage hidden in turn."""
        hidden = torch.eye(len(example.spans), dtype=torch.bool)
        return -log_probability(self.model, example, hidden)

    @staticmethod
    def _score(logits: Tensor, example: Example) -> Tensor:
        chosen = logits.log_softmax(-1)[0, list(example.askers)]
        return chosen.gather(1, example.tokens[0, len(example.prompt) :, None]).mean()


def given(example: Example) -> dict[str, Any]:
    return {
        "prompt": example.prompt,
        "answer": example.answer,
        "spans": [[span.start, span.stop] for span in example.spans],
    }


def halves(example: Example, draw: torch.Generator) -> Tensor:
    """Draw which passages are hidden in each case: bool [case, passage]."""
    return torch.rand(HALVES, len(example.spans), generator=draw) < 0.5


def judged(
    model: LlamaForCausalLM, examples: Sequence[Example], scores: Sequence[Tensor]
) -> list[tuple[float, float]]:
    """Return mean and standard error of three figures: one hidden, three hidden, correlation."""
    rows = []
    for number, (example, score) in enumerate(zip(examples, scores, strict=True)):
        draw = torch.Generator().manual_seed(number)  # each method meets the same halves
        order = score.argsort(descending=True)
        best = torch.zeros(3, len(example.spans), dtype=torch.bool)
        best[1, order[:1]] = best[2, order[:3]] = True
        half = halves(example, draw)
        answers = log_probability(model, example, torch.cat([best, half]))
        drops = answers[0] - answers
        guesses = half.double() @ score.double()
        pair = torch.stack([drops[3:].double(), guesses])
        told = float(torch.corrcoef(pair)[0, 1]) if guesses.std() > 0 else 0.0
        rows.append([float(drops[1]), float(drops[2]), told])
    values = np.array(rows)
    errors = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return list(zip(values.mean(axis=0).tolist(), errors.tolist(), strict=True))


def of_peers(
    model: LlamaForCausalLM,
    task: Task,
    examples: Sequence[Example],
    draw: random.Random,
    generator: torch.Generator,
) -> Iterator[tuple[str, list[Tensor], float]]:
    """Yield name, scores and CPU seconds an example of other explainers."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model.save_pretrained(folder / "model")
        told = {"model": str(folder / "model"), "examples": [given(each) for each in examples]}
        learned = []
        began = time.process_time()
        for example in [task.example(draw) for _ in range(LEARNED)]:
            hidden = halves(example, generator)
            answers = log_probability(model, example, hidden)
            learned.append(
                {**given(example), "hidden": hidden.tolist(), "scores": answers.tolist()}
            )
        spent = time.process_time() - began
        print(f"AT2 learned from {LEARNED * HALVES:,} ablations, {spent:.0f} CPU s.")
        for peer, more in (("AT2", {"learned": learned}), ("FlashTrace", {})):
            answer = ask_peer(folder, peer.lower(), {**told, **more})
            scores = [torch.tensor(row) for row in answer["scores"]]
            yield peer, scores, answer["cpu_s"] / EXAMPLES


def compare(task: Task, *, with_peers: bool) -> None:
    """Train a model for *task* and print its table."""
    print(f"\n{task.name}")
    model, draw = trained(task), random.Random(1)
    examples = [task.example(draw) for _ in range(EXAMPLES)]
    generator = torch.Generator().manual_seed(1)
    methods = Methods(model, generator)
    told = {
        "shares by passage": methods.shares,
        "the same without the mask's part": methods.content,
        "rollout by gradient": methods.by_gradient,
        "relevance": methods.relevance,
        "recency": methods.recency,
        "random": methods.chance,
        "each hidden in turn": methods.in_turn,
    }
    spent, scores = {}, {}
    for method, score in told.items():
        began = time.process_time()
        scores[method] = [score(example).detach() for example in examples]
        spent[method] = (time.process_time() - began) / EXAMPLES
    for peer, answers, seconds in (
        of_peers(model, task, examples, draw, generator) if with_peers else ()
    ):
        scores[peer], spent[peer] = answers, seconds
    plain = [
        float(log_probability(model, each, torch.zeros(1, len(each.spans), dtype=torch.bool)))
        for each in examples
    ]
    print(f"{EXAMPLES} answers of {np.mean(plain):.3f} nats a token")
    print(f"{'':34} best hidden    best 3 hidden  correlation    CPU ms")
    for method, kept in scores.items():
        figures = [f"{mean:6.3f} ± {error:.3f}" for mean, error in judged(model, examples, kept)]
        print(f"{method:34} {'  '.join(figures)}  {1e3 * spent[method]:6.1f}", flush=True)


def main() -> None:
    """Print a table for each task."""
    torch.set_num_threads(1)
    print(machine_line())
    compare(RECALL, with_peers=True)
    compare(TWO, with_peers=False)
    compare(NEIGHBOUR, with_peers=False)


if __name__ == "__main__":
    main()
