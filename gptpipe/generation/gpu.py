"""Decoding on devices other than a CPU, where a step is bound by how fast its kernels are started.

A step ends with its draw: tokens, positions and the cache stay on the device, which goes on for several tokens before
the host looks at them. A row that ends meanwhile is cut off. The numbers by which tokens are drawn are the CPU's, made
on the host while the device works.

All shapes of a step are fixed: rows are rounded up to a power of two. On CUDA a step of such a shape is captured as a
graph the first time, and replayed with one call from then on. Where Triton is, its kernels are those of `kernels.py`;
elsewhere torch's, and rows attend to a width that is a power of two, each masked at its own length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gptpipe.config import SampleConfig
from gptpipe.generation.decoder import Continuation, Decoder, Linear, Row, norm_of, normalized
from gptpipe.generation.fused import decoding_kernels
from gptpipe.generation.sampling import drawn, penalized, seen_mask, uniform
from gptpipe.model.gpt import GPT
from gptpipe.model.gpus import on_device

_WARM_UP = 2  # steps before a capture, in which libraries set themselves up


class _Linear:
    """A linear layer as it is."""

    def __init__(self, layer: nn.Linear, _consume: bool) -> None:
        self.weight = layer.weight
        self.bias = None if layer.bias is None else layer.bias.to(layer.weight.dtype)

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        out = F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return F.gelu(out, approximate="tanh") if gelu else out

    def added(self, x: Tensor, to: Tensor) -> Tensor:
        return to + self(x)


class GraphedDecoder(Decoder):
    """Rows on a GPU, or on whatever else the model is."""

    columns = 64
    least = 1
    ahead = 16  # more would be computed for nothing after a row's end

    def __init__(self, model: GPT, new_tokens: int) -> None:
        self._graphs: dict[tuple[Any, ...], torch.cuda.CUDAGraph] = {}
        self._kernels = None
        if model.config.architecture == "gpt2":  # its kernels know layer norms, GELU and no turns
            self._kernels = decoding_kernels(model.wte.weight.device, model.lm_head.weight.dtype)
        self._known_draws: dict[tuple[int, int, int], float] = {}
        super().__init__(model, new_tokens, _Linear, consume=False)

    def _moved(self) -> None:
        slots, device = self._slot_count, self._device
        self._graphs = {}
        self._given = torch.zeros(2, slots, dtype=torch.int64, device=device)  # tokens and positions of a step
        self._places = torch.arange(max(slots, self._capacity), device=device)
        self._turn = torch.zeros(1, dtype=torch.int64, device=device)  # steps since the host looked
        self._uniforms = torch.zeros(self.ahead, slots, dtype=torch.float64, device=device)
        self._tokens = torch.zeros(self.ahead, slots, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(self.ahead, slots, dtype=torch.float64, device=device)
        self._seen = torch.zeros(slots, 0, dtype=torch.bool, device=device)  # (slots, V) with a repetition penalty

    def continued(self, rows: Sequence[Row], config: SampleConfig, count: int, *, logprobs: bool) -> Continuation:
        with on_device(self._device):
            return self._continued(rows, config, count, logprobs)

    def _continued(self, rows: Sequence[Row], config: SampleConfig, count: int, logprobs: bool) -> Continuation:
        known = [row for row in rows if self._goes_on(row)]
        self._keep([row.number for row in known])
        fresh = [row for row in rows if row.number not in self._slots]
        if fresh:  # the others wait for them after one token
            count = 1
        lengths = [len(row.tokens) - row.start for row in rows]
        later = max((len(row.tokens) - row.start + self._new for row in fresh), default=0)
        self._make_room(len(rows), max(lengths) + count - 1, later)
        known.sort(key=lambda row: self._slots.index(row.number))
        parts: list[tuple[Tensor, Tensor]] = []
        if known:
            parts.append(self._block(known, config, count, logprobs))
        if fresh:
            parts.append(self._first(fresh, config, logprobs))
        if config.temperature:  # while the device works
            self._know_draws([(config.seed, row.number, len(row.tokens) + count) for row in rows])
        tokens, scores = (torch.cat(each, dim=1).tolist() for each in zip(*parts, strict=True))
        numbers = [row.number for row in (*known, *fresh)]
        order = [numbers.index(row.number) for row in rows]
        return Continuation(
            [[line[place] for place in order] for line in tokens],
            [[line[place] for place in order] for line in scores] if logprobs else [],
        )

    def _first(self, rows: list[Row], config: SampleConfig, logprobs: bool) -> tuple[Tensor, Tensor]:
        """Rows that are read from their beginning; the tokens that follow, and their log-probabilities, (1, rows)."""
        logits = self._logits(torch.stack([self.read(row) for row in rows]))
        places = [(config.seed, row.number, len(row.tokens)) for row in rows]
        uniforms = torch.tensor(self._draws(places, config), dtype=torch.float64).to(self._device)
        seen = None
        if config.repetition_penalty != 1:
            seen = seen_mask([row.tokens for row in rows], logits)
        tokens, scores = _chosen(logits, config, uniforms, seen, logprobs)
        return tokens[None], scores[None]

    def _block(self, rows: list[Row], config: SampleConfig, count: int, logprobs: bool) -> tuple[Tensor, Tensor]:
        """`count` steps of rows in the cache's slots, in their order; tokens and log-probabilities, (count, rows)."""
        size = min(self._slot_count, _power_of_two(len(rows)))
        furthest = max(self._lengths[row.number] for row in rows) + count
        width = min(self._capacity, max(self.columns, _power_of_two(furthest)))
        fill = self._filling(rows, size, config, count)

        def step() -> None:
            self._step(size, width, config, logprobs)

        replay = step
        if self._device.type == "cuda":
            how = (config.temperature, config.top_k, config.top_p, config.min_p, config.repetition_penalty, logprobs)
            key = (size, width if self._kernels is None else 0, *how)
            if key not in self._graphs:
                self._graphs[key] = self._captured(fill, step)
            replay = self._graphs[key].replay
        fill()
        for _ in range(count):
            replay()
        for row in rows:
            self._lengths[row.number] += count
        return self._tokens[:count, : len(rows)], self._logprobs[:count, : len(rows)]

    def _captured(self, fill: Callable[[], None], step: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """A step as a graph. What it writes on the way into the cache, it writes there again."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                fill()
                step()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=aside):
            step()
        return graph

    def _filling(self, rows: list[Row], size: int, config: SampleConfig, count: int) -> Callable[[], None]:
        """What puts on the device where these rows are, and the numbers by which their next tokens are drawn."""
        # a slot without a row gets token 0 at position 0 and the next, where the row that is read into it will write
        rest = [0] * (size - len(rows))
        positions = [self._lengths[row.number] for row in rows]
        given = torch.tensor([[row.tokens[-1] for row in rows] + rest, positions + rest])
        places = [(config.seed, row.number, len(row.tokens) + turn) for turn in range(count) for row in rows]
        uniforms = torch.tensor(self._draws(places, config), dtype=torch.float64).view(count, len(rows))
        seen = None
        if config.repetition_penalty != 1:
            if not self._seen.shape[1]:
                vocabulary = self._model.config.vocab_size
                self._seen = torch.zeros(self._slot_count, vocabulary, dtype=torch.bool, device=self._device)
            seen = seen_mask([row.tokens for row in rows], self._seen[: len(rows)])

        def fill() -> None:
            self._given[:, :size].copy_(given)
            self._uniforms[:count, : len(rows)].copy_(uniforms)
            self._turn.zero_()
            if seen is not None:
                self._seen[: len(rows)].copy_(seen)

        return fill

    def _know_draws(self, places: list[tuple[int, int, int]]) -> None:
        """Make the numbers for the positions from these on, which come next."""
        following = [(seed, row, place + turn) for seed, row, place in places for turn in range(self.ahead)]
        self._known_draws = {each: uniform(*each) for each in following}

    def _draws(self, places: list[tuple[int, int, int]], config: SampleConfig) -> list[float]:
        if not config.temperature:
            return [0.0] * len(places)
        return [self._known_draws.get(each) or uniform(*each) for each in places]

    def _step(self, size: int, width: int, config: SampleConfig, logprobs: bool) -> None:
        """One token of the rows in the first slots, left where the next step finds it."""
        hidden = self._plain(size, width) if self._kernels is None else self._fused(size)
        uniforms = self._uniforms[:, :size].index_select(0, self._turn)[0]
        seen = self._seen[:size] if config.repetition_penalty != 1 else None
        tokens, scores = _chosen(self._logits(hidden), config, uniforms, seen, logprobs)
        self._tokens[:, :size].index_copy_(0, self._turn, tokens[None])
        if logprobs:
            self._logprobs[:, :size].index_copy_(0, self._turn, scores[None])
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        self._given[0, :size].copy_(tokens)
        self._given[1, :size].add_(1)
        self._turn.add_(1)

    def _logits(self, hidden: Tensor) -> Tensor:
        """What the output layer makes of rows, (N, C): (N, V), float32."""
        if self._kernels is not None:
            _, scale, shift, epsilon = norm_of(self._model.ln_f)
            logits: Tensor = self._kernels.linear(
                hidden, *_matrix(self._head), norm=(scale, shift, epsilon), dtype=torch.float32
            )
            return logits
        return self._head(normalized(hidden, norm_of(self._model.ln_f))).float()

    def _plain(self, count: int, width: int) -> Tensor:
        """A step of the tokens that were given, of the first slots, by torch's kernels; (count, C)."""
        tokens, positions = self._given[0, :count], self._given[1, :count]
        slots = self._places[:count]
        mask = (self._places[:width] <= positions[:, None])[:, None, None]  # (count, 1, 1, width)

        def attend(number: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = self._keys[number], self._values[number]
            keys[slots, :, positions] = key
            values[slots, :, positions] = value
            out = F.scaled_dot_product_attention(
                query[:, :, None],
                keys[:count, :, :width],
                values[:count, :, :width],
                attn_mask=mask,
                enable_gqa=self._kv_heads < self._heads,
            )
            return out.reshape(count, -1)

        return self._layers(tokens, positions, attend)

    def _fused(self, count: int) -> Tensor:
        """The same in five kernels per block."""
        kernels = self._kernels
        assert kernels is not None
        tokens, positions = self._given[0, :count], self._given[1, :count]
        x: Tensor = kernels.embedded(tokens, positions, self._model.wte.weight, self._model.wpe.weight)
        for number, block in enumerate(self._blocks):
            qkv = kernels.linear(x, *_matrix(block.c_attn), norm=block.ln_1[1:])
            qkv = qkv.view(count, 3, self._heads, self._size)
            out = kernels.attended(qkv, self._keys[number], self._values[number], positions)
            kernels.add_linear_(x, out, *_matrix(block.c_proj))
            wide = kernels.linear(x, *_matrix(block.c_fc), norm=block.ln_2[1:], gelu=True)
            kernels.add_linear_(x, wide, *_matrix(block.c_out))
        return x


def _matrix(layer: Linear) -> tuple[Tensor, Tensor | None]:
    """A layer's matrix and bias, as kernels take them."""
    assert isinstance(layer, _Linear)
    return layer.weight, layer.bias


def _chosen(
    logits: Tensor, config: SampleConfig, uniforms: Tensor, seen: Tensor | None, logprobs: bool
) -> tuple[Tensor, Tensor]:
    """Tokens and the log-probabilities that the model itself gave them (zeros where not asked for), (N,) each."""
    changed = logits if seen is None else penalized(logits, seen, config.repetition_penalty)
    tokens = drawn(changed, config, uniforms)
    if not logprobs:
        return tokens, torch.zeros_like(uniforms)
    return tokens, torch.log_softmax(logits.double(), dim=-1).gather(1, tokens[:, None]).squeeze(1)


def _power_of_two(number: int) -> int:
    """The smallest that is not below it."""
    return 1 << (number - 1).bit_length()
