"""The model that a fitness sees: text in, text or log-likelihoods out. The individual inside is not its concern."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from evomerge.errors import FitnessError
from evomerge.evaluation.adapters import AdapterSlots, Factors

Tokens = list[int]


def resolve_device(name: str) -> str:
    """Return ``name``, or for ``auto`` the GPU if there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def resolve_dtype(name: str, device: str) -> str:
    """Return ``name``, or for ``auto`` the faster of bfloat16 and float32 on this device, measured in 0.1 s."""
    if name != "auto":
        return name
    if device != "cpu":
        return "bfloat16"
    seconds = {dtype: min(_seconds_of_matmul(dtype) for _ in range(3)) for dtype in (torch.float32, torch.bfloat16)}
    return "bfloat16" if seconds[torch.bfloat16] < 0.8 * seconds[torch.float32] else "float32"


def _seconds_of_matmul(dtype: torch.dtype) -> float:
    left = torch.ones(512, 1024, dtype=dtype)
    right = torch.ones(1024, 1024, dtype=dtype)
    start = time.perf_counter()
    torch.nn.functional.linear(left, right)
    return time.perf_counter() - start


def load_base(path: str | Path, dtype: str, device: str) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer from a folder or a hub name."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    network = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).to(device).eval()
    network.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return network, tokenizer


def prompt_tokens(tokenizer: Any, text: str) -> Tokens:
    """Return the ids of a text that opens a sequence: with the start token that the tokenizer's model expects.

    A rendered chat template has it already.
    """
    start = tokenizer.bos_token
    ids: Tokens = tokenizer(text, add_special_tokens=not (start and text.startswith(start)))["input_ids"]
    # Some tokenizers would also close the text, which is to be continued here.
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token) else ids


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Group indices of similar length, longest first, so that rows times longest stays within a budget of tokens."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class Model:
    """A base model that wears one individual at a time, with greedy generation and log-likelihoods.

    Args:
        network: a causal language model of transformers, in evaluation mode.
        tokenizer: its tokenizer, with a pad token.
        modules: the names of the linear modules that individuals adapt.
        batch_tokens: the most tokens, padding included, that go through the network at once.
    """

    tokens_used: int = 0
    """Tokens that ``generate`` and ``loglikelihood`` have taken so far; it only grows.

    A prompt costs its tokens, and one for each token chosen after it, an end token or one that ``stop`` cuts off
    included. A (context, continuation) pair costs the tokens of both. Padding costs nothing and repeated texts cost
    each time, so the count does not depend on batches. A call that fails has taken what it read until then. What a
    fitness does with ``network`` by itself is not counted.
    """

    def __init__(self, network: Any, tokenizer: Any, modules: Sequence[str] = (), *, batch_tokens: int = 4096) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self._slots = AdapterSlots(network, modules)
        self._tokens: dict[str, Tokens] = {}
        self._ends = _end_tokens(network, tokenizer)

    def wear(self, factors: Factors) -> None:
        """Become the individual with these factors, or the plain base for an empty mapping."""
        self._slots.wear(factors)

    def chat(self, message: str, system: str | None = None) -> str:
        """Return the prompt that the model's own chat template makes of a user's message."""
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": message})
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def tokenize(self, text: str) -> Tokens:
        """Return the token ids of a prompt; each is tokenised once in the model's life."""
        if text not in self._tokens:
            self._tokens[text] = prompt_tokens(self.tokenizer, text)
        return self._tokens[text]

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[str], *, max_new_tokens: int | Sequence[int] = 16, stop: Sequence[str] = ()
    ) -> list[str]:
        """Continue each prompt greedily.

        Args:
            prompts: texts to continue; none may be empty.
            max_new_tokens: the most tokens to add, for all prompts or for each.
            stop: strings that end a continuation; the text before the first of them is returned.

        Returns:
            The continuations, without the prompt and without end tokens, in the order of the prompts.

        Raises:
            FitnessError: a prompt is empty.
            FloatingPointError: the individual's logits are not numbers.
        """
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        tokens = self._contexts(prompts)
        texts = [""] * len(prompts)
        for batch in batches([len(row) + limit for row, limit in zip(tokens, limits, strict=True)], self.batch_tokens):
            rows = self._continue([tokens[i] for i in batch], [limits[i] for i in batch], stop)
            for index, row in zip(batch, rows, strict=True):
                texts[index] = row
        return texts

    @torch.inference_mode()
    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return ``log P(continuation | context)`` in nats, summed over tokens, for each (context, continuation).

        Raises:
            FitnessError: a context is empty.
            FloatingPointError: the individual's logits are not numbers.
        """
        contexts = self._contexts([context for context, _ in pairs])
        endings = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for _, text in pairs]
        values = [0.0] * len(pairs)
        for batch in batches([len(c) + len(e) for c, e in zip(contexts, endings, strict=True)], self.batch_tokens):
            rows = self._score([contexts[i] for i in batch], [endings[i] for i in batch])
            for index, value in zip(batch, rows, strict=True):
                values[index] = value
        return values

    def _contexts(self, texts: Sequence[str]) -> list[Tokens]:
        tokens = [self.tokenize(text) for text in texts]
        if not all(tokens):
            cause = f"prompt {tokens.index([])} of {len(texts)} is empty"
            raise FitnessError(cause, where="prompt", fix="Give the model at least one token to continue.")
        return tokens

    def _pad_left(self, rows: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and attention mask ``[rows, longest]``, padded on the left."""
        longest = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return ids.to(self.network.device), mask.to(self.network.device)

    def _continue(self, rows: Sequence[Tokens], limits: Sequence[int], stop: Sequence[str]) -> list[str]:
        """Decode one batch greedily with a key-value cache; finished rows leave the batch."""
        from transformers import DynamicCache

        self.tokens_used += sum(map(len, rows))
        ids, mask = self._pad_left(rows)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.network.config)
        added: list[Tokens] = [[] for _ in rows]
        alive = list(range(len(rows)))
        for _ in range(max(limits)):
            # A tensor of positions, not an int: it makes the network gather, not slice. On CPUs a bfloat16
            # product of a sliced 3-d tensor leaves the fast path (measured: 230 times slower).
            last = torch.tensor([ids.shape[1] - 1], device=ids.device)
            logits = self.network(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=last,
            ).logits[:, -1]
            top, chosen = logits.max(-1)
            _refuse_nan(top)
            self.tokens_used += len(alive)
            going = self._append(alive, chosen.tolist(), added, limits, stop)
            if not going:
                break
            if len(going) < len(alive):
                rest = torch.tensor(going, device=ids.device)
                cache.batch_select_indices(rest)
                chosen, mask, positions = chosen[rest], mask[rest], positions[rest]
                alive = [alive[i] for i in going]
            ids = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            positions = positions[:, -1:] + 1
        return [_cut(self.tokenizer.decode(row), stop) for row in added]

    def _append(
        self,
        alive: Sequence[int],
        chosen: Sequence[int],
        added: list[Tokens],
        limits: Sequence[int],
        stop: Sequence[str],
    ) -> list[int]:
        """Add the chosen tokens; return the places in the batch of the rows that go on."""
        going = []
        for place, (row, token) in enumerate(zip(alive, chosen, strict=True)):
            if token in self._ends:
                continue
            added[row].append(token)
            text = self.tokenizer.decode(added[row]) if stop else ""
            if len(added[row]) < limits[row] and not any(mark in text for mark in stop):
                going.append(place)
        return going

    def _score(self, contexts: Sequence[Tokens], endings: Sequence[Tokens]) -> list[float]:
        self.tokens_used += sum(map(len, (*contexts, *endings)))
        ids, mask = self._pad_left([c + e for c, e in zip(contexts, endings, strict=True)])
        width = max(len(ending) for ending in endings)
        kept = torch.arange(ids.shape[1] - width - 1, ids.shape[1] - 1, device=ids.device)
        logits = self.network(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=kept,
        ).logits
        chances = torch.log_softmax(logits.float(), dim=-1)
        picked = chances.gather(2, ids[:, ids.shape[1] - width :, None])[..., 0].cpu()
        _refuse_nan(picked)
        return [float(row[width - len(ending) :].sum()) for row, ending in zip(picked, endings, strict=True)]


def _end_tokens(network: Any, tokenizer: Any) -> frozenset[int]:
    ends = network.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in (*listed, tokenizer.eos_token_id) if token is not None)


def _refuse_nan(values: torch.Tensor) -> None:
    """Raise where a diverged individual would otherwise get the score of whatever NaN happens to pick."""
    if values.isnan().any():
        raise FloatingPointError("the individual's logits are not numbers (NaN)")


def _cut(text: str, stop: Sequence[str]) -> str:
    places = [text.index(mark) for mark in stop if mark in text]
    return text[: min(places)] if places else text
