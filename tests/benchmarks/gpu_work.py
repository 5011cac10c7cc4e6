"""What `gpu.py` measures, each in a process that it starts: `python gpu_work.py WHAT --device cuda [--quick]`.

A work prints one line of JSON last; what it says before, and to stderr, goes into the part's log.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--other", default="")
    options = parser.parse_args()
    print(json.dumps(WORKS[options.work](options, Sizes.of(options.device, options.quick))))


@dataclass(frozen=True)
class Sizes:
    """What is computed: GPT-2 124M on a GPU, something small without one."""

    device: str
    layers: int = 12
    width: int = 768
    context: int = 1024
    vocabulary: int = 50257
    batch: int = 32  # windows of a step; those of the whole trainer are 15 times as many
    square: int = 8192  # of the matrix product that says what the device can do
    rows: int = 8192  # of logits
    new: int = 256  # tokens that are generated
    seconds: float = 8.0  # that a speed is measured for
    steps: int = 36

    @classmethod
    def of(cls, device: str, quick: bool) -> Sizes:
        if device == "cpu":
            return cls("cpu", 2, 64, 64, 50257, 2, 256, 64, 12, 0.5, 6)
        return cls(device, new=96, seconds=3.0, steps=12) if quick else cls(device)

    def shape(self) -> dict[str, Any]:
        heads = max(1, self.width // 64)
        return {"n_layer": self.layers, "n_embd": self.width, "n_head": heads, "context_length": self.context}


def device(_options: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    import torch

    a, b = (torch.randn(sizes.square, sizes.square, device=sizes.device).bfloat16() for _ in range(2))
    product = 2 * sizes.square**3 / timed(lambda: a @ b, sizes.device)
    source = torch.randint(0, 255, (sizes.square**2 * 8,), dtype=torch.uint8, device=sizes.device)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / timed(lambda: target.copy_(source), sizes.device)
    name = torch.cuda.get_device_name() if sizes.device == "cuda" else "a CPU, at a toy size"
    return {"name": name, "torch": torch.__version__, "product": product, "copy": copy}


def timed(work: Callable[[], Any], device: str, repeats: int = 20) -> float:
    """Seconds of a piece of work, the median; on a GPU between events."""
    import torch

    for _ in range(3):
        work()
    if device != "cuda":
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1e3


def loss_of_a_chunk(_options: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    import torch
    from torch.nn import functional as F

    from gptpipe.model import loss
    from gptpipe.model.fused import loss_kernels

    width = -(-sizes.vocabulary // 64) * 64
    fresh = 3 * torch.randn(sizes.rows, width, device=sizes.device).bfloat16()
    logits, targets = fresh.clone(), torch.randint(0, sizes.vocabulary, (sizes.rows,), device=sizes.device)
    index = targets.unsqueeze(1)
    copy = timed(lambda: logits.copy_(fresh), sizes.device)

    def own() -> None:
        logits.copy_(fresh)
        _, picked, _ = loss._softmax_(logits, index, torch.float32, keep=True)
        logits.scatter_(1, index, (picked - 1).bfloat16())

    made: dict[str, Any] = {"torch": timed(own, sizes.device) - copy}
    kernels = loss_kernels(logits)
    if kernels is None:
        return made

    def fused(columns: int = kernels.COLUMNS, warps: int = kernels.WARPS) -> None:
        logits.copy_(fresh)
        kernels.loss_and_gradient_(logits, targets, sizes.vocabulary, -100, columns=columns, warps=warps)

    made |= {"fused": timed(fused, sizes.device) - copy, "floor": copy, "others": []}  # read once and written once
    for columns in (1024, 2048, 4096, 8192, 16384):
        for warps in (4, 8, 16, 32):
            if columns // warps <= 1024:
                seconds = timed(lambda c=columns, w=warps: fused(c, w), sizes.device, 5) - copy
                made["others"].append((f"{columns} columns, {warps} warps", seconds))
    fused()
    some = fresh[:64, : sizes.vocabulary].double().requires_grad_()
    F.cross_entropy(some, targets[:64], reduction="sum").backward()
    made["distance"] = float((logits[:64, : sizes.vocabulary] - some.grad).norm() / some.grad.norm())
    return made


def step_speed(options: argparse.Namespace, sizes: Sizes) -> dict[str, float]:
    import torch

    from gptpipe.train.flops import peak_flops

    step, flops = _step(options, sizes, os.environ["GPTPIPE_WHO"])
    for _ in range(3):
        step()
    if sizes.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds, until = [], time.perf_counter() + sizes.seconds
    while time.perf_counter() < until or len(seconds) < 5:
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    speed = sizes.batch * sizes.context / statistics.median(seconds)
    peak = torch.cuda.max_memory_allocated() if sizes.device == "cuda" else 1.0
    return {"speed": speed, "peak": peak, "mfu": speed * flops / peak_flops(torch.device(sizes.device), torch.bfloat16)}


def _step(options: argparse.Namespace, sizes: Sizes, who: str) -> tuple[Callable[[], None], int]:
    """A function that takes a step: forward, loss, backward, clipping, fused AdamW. And our FLOPs per token."""
    import torch
    from torch.nn import functional as F

    from gptpipe import GPT, ModelConfig
    from gptpipe.train.adamw import AdamW

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    device, compiles = torch.device(sizes.device), sizes.device == "cuda"
    tokens = torch.randint(0, sizes.vocabulary, (sizes.batch, sizes.context + 1), device=device)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    shape = sizes.shape()
    with torch.device("meta"):
        flops = GPT(ModelConfig(**shape)).flops_per_token()
    model: Any
    if who.startswith("ours"):
        model = GPT(ModelConfig(**shape)).to(device)
        if compiles and who == "ours":
            for block in model.h:
                block.compile(dynamic=False)

        def loss() -> Any:
            return model(inputs, targets) / targets.numel()
    elif who == "transformers":
        from transformers import GPT2Config, GPT2LMHeadModel

        del shape["context_length"]
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        model = GPT2LMHeadModel(GPT2Config(n_positions=sizes.context, **no_dropout, **shape)).to(device)
        run = torch.compile(model) if compiles else model

        def loss() -> Any:
            return F.cross_entropy(run(inputs).logits.flatten(0, 1), targets.flatten())
    else:
        import runpy

        theirs = runpy.run_path(options.other.partition("=")[2])
        given = {"block_size": sizes.context, "vocab_size": 50304, "dropout": 0.0, "bias": True}
        given |= {name: shape[name] for name in ("n_layer", "n_embd", "n_head")}
        model = theirs["GPT"](theirs["GPTConfig"](**given)).to(device)
        run = torch.compile(model) if compiles else model

        def loss() -> Any:
            return run(inputs, targets)[1]

    model.train()
    parameters = list(model.parameters())
    optimizer: Any
    if who.startswith("ours"):
        groups = [{"params": parameters, "weight_decay": 0.1}]
        optimizer = AdamW(groups, learning_rate=1e-4, betas=(0.9, 0.95), epsilon=1e-8)
    else:
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), fused=True, weight_decay=0.1)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step, flops


_KINDS = {
    "attention": ("flash", "cudnn_generated", "fmha", "attention"),
    "the loss's kernel": ("_softmax_cross_entropy",),
    "compiled by torch": ("triton_",),
    "optimizer and clipping": ("multi_tensor", "adam", "lpnorm", "foreach"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "mm", "addmm"),
    "copies and conversions": ("copy", "memcpy", "memset", "fill"),
    "softmax and reductions": ("softmax", "reduce"),
}


def shares(options: argparse.Namespace, sizes: Sizes) -> list[tuple[str, float, int]]:
    """Shares of the kernels' time, by kind; the whole table goes to stderr, and so into the part's log."""
    from torch.profiler import profile

    step, _ = _step(options, sizes, "ours")
    for _ in range(3):
        step()
    with profile() as taken:
        for _ in range(3):
            step()
    averages = taken.key_averages()
    on_gpu = sizes.device == "cuda"
    by = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    print(averages.table(sort_by=by, row_limit=40, max_name_column_width=70), file=sys.stderr)
    times: dict[str, list[float]] = {}
    for each in averages:
        spent = float(getattr(each, by))
        if spent > 0 and (not on_gpu or "CUDA" in str(each.device_type)):
            name = each.key.lower()
            kind = next((kind for kind, parts in _KINDS.items() if any(part in name for part in parts)), "the rest")
            so_far = times.setdefault(kind, [0.0, 0.0])
            so_far[0] += spent
            so_far[1] += each.count / 3
    whole = sum(spent for spent, _ in times.values())
    ordered = sorted(times.items(), key=lambda item: -item[1][0])
    return [(kind, spent / whole, round(count)) for kind, (spent, count) in ordered]


def _dataset(sizes: Sizes) -> str:
    """Python's own library as text, tokenized once for all parts."""
    from gptpipe.config import DataConfig
    from gptpipe.corpus.build import tokenize

    folder = Path(os.environ["GPTPIPE_WORK"])
    text = folder / "text"
    if not text.exists():
        text.mkdir()
        files = sorted(Path(os.__file__).parent.glob("*.py"))[: 12 if sizes.device == "cpu" else None]
        for file in files:
            shutil.copy(file, text / f"{file.stem}.txt")
    return tokenize(DataConfig(corpus=[str(text)]), str(folder / "data")).dataset  # type: ignore[list-item]


def trainer(_options: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    from gptpipe.config import ModelConfig, TrainConfig
    from gptpipe.launch.torchrun import Watchers
    from gptpipe.launch.training import train

    said: list[str] = []
    data, began = _dataset(sizes), time.perf_counter()
    config = TrainConfig(
        steps=sizes.steps, warmup_steps=1, batch_size=15 * sizes.batch, device=sizes.device, log_every=3,
        checkpoint_every=sizes.steps // 2, validate_every=0, validate_tokens=4096, precision="bfloat16",
    )  # fmt: skip
    out = str(Path(os.environ["GPTPIPE_WORK"]) / os.environ["GPTPIPE_OUT"])
    made = train(ModelConfig(**sizes.shape()), config, data=data, out=out, watchers=Watchers(on_line=said.append))
    print(*said, sep="\n", file=sys.stderr)
    lines = [json.loads(line) for line in (Path(made.training) / "metrics.jsonl").read_text().splitlines()]
    later = [line for line in lines if line["step"] > 3 and "train/mfu" in line]
    start = next(re.match(r"([\d.]+) s from the call.*?: (.*)", line) for line in said if "from the call" in line)
    how = next(re.search(r"micro-batch (\d+),.*?(compiled|$)$", line) for line in said if "micro-batch" in line)
    assert start is not None
    assert how is not None
    return {
        "start": float(start[1]),
        "phases": start[2],
        "speed": statistics.median(line["train/tokens_per_second"] for line in later),
        "mfu": statistics.median(line["train/mfu"] for line in later),
        "wait": statistics.fmean(line["train/data_wait"] for line in later),
        "stall": statistics.fmean(line["train/checkpoint_stall"] for line in later),
        "micro_batch": how[1],
        "compiled": bool(how[2]),
        "seconds": time.perf_counter() - began,
    }


def _model(sizes: Sizes, precision: str) -> Any:
    import torch

    from gptpipe import GPT, ModelConfig
    from gptpipe.model.precision import to_precision

    torch.manual_seed(0)
    return to_precision(GPT(ModelConfig(**sizes.shape())), precision).to(sizes.device).eval()


def _theirs(sizes: Sizes, precision: str) -> Any:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = sizes.shape()
    del shape["context_length"]
    model = GPT2LMHeadModel(GPT2Config(n_positions=sizes.context, **shape))
    return model.to(sizes.device, getattr(torch, precision)).eval()


def decoding(_options: argparse.Namespace, sizes: Sizes) -> dict[str, float]:
    """Milliseconds per token of both sides, and of reading the matrices once."""
    import torch

    from gptpipe.config import SampleConfig
    from gptpipe.generation.generate import generate_ids
    from gptpipe.generation.gpu import GraphedDecoder

    made: dict[str, float] = {}
    draw = torch.Generator().manual_seed(1)
    for precision in ("bfloat16", "float32"):
        model, theirs = _model(sizes, precision), _theirs(sizes, precision)
        size = sum(each.weight.nbytes for each in model.modules() if isinstance(each, torch.nn.Linear))
        source = torch.randint(0, 255, (size // 2,), dtype=torch.uint8, device=sizes.device)
        target = torch.empty_like(source)
        floor = 1e3 * timed(lambda target=target, source=source: target.copy_(source), sizes.device)
        for prompts in (1, 16):
            ids = torch.randint(0, sizes.vocabulary, (prompts, 16), generator=draw)
            tokens, decoder = ids.to(sizes.device), GraphedDecoder(model, sizes.new + 8)

            def ours(count: int, model: Any = model, ids: Any = ids, decoder: Any = decoder) -> None:
                config = SampleConfig(prompts=["a"], max_new_tokens=count, temperature=0)
                assert all(len(row) == count for row in generate_ids(model, ids.tolist(), config, decoder=decoder))

            def their(count: int, theirs: Any = theirs, tokens: Any = tokens) -> None:
                theirs.generate(
                    tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, min_new_tokens=count,
                    do_sample=False, pad_token_id=50256,
                )  # fmt: skip

            made[f"floor {precision} {prompts}"] = floor
            made[f"ours {precision} {prompts}"] = _per_token(ours, sizes.new, 3)
            made[f"transformers {precision} {prompts}"] = _per_token(their, sizes.new, 1)
    return made


def _per_token(run: Callable[[int], None], new: int, rounds: int) -> float:
    """Milliseconds; what reading the prompt takes is taken off: the same with fewer tokens."""
    import torch

    long, short = 8 + new, 8
    seconds: dict[int, list[float]] = {long: [], short: []}
    with torch.inference_mode():
        run(long)  # of every shape once: graphs are captured
        for _ in range(rounds):
            for count, each in seconds.items():
                began = time.perf_counter()
                run(count)
                each.append(time.perf_counter() - began)
    return 1e3 * (statistics.median(seconds[long]) - statistics.median(seconds[short])) / new


def scoring(_options: argparse.Namespace, sizes: Sizes) -> dict[str, dict[str, float]]:
    """Tokens per second and memory of both sides."""
    import torch

    count = 16 * sizes.batch
    ids = torch.randint(0, sizes.vocabulary, (count, sizes.context + 1), generator=torch.Generator().manual_seed(1))
    made: dict[str, dict[str, float]] = {}
    for precision in ("bfloat16", "float32"):
        for who, scorer in {"ours": _our_scores, "transformers": _their_scores}.items():
            run = scorer(sizes, precision)
            run(ids[: sizes.batch])
            if sizes.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            run(ids)
            speed = count * sizes.context / (time.perf_counter() - began)
            peak = torch.cuda.max_memory_allocated() if sizes.device == "cuda" else 1.0
            made[f"{who} {precision}"] = {"speed": speed, "peak": peak}
            del run
            if sizes.device == "cuda":
                torch.cuda.empty_cache()
    return made


def _our_scores(sizes: Sizes, precision: str) -> Callable[[Any], float]:
    import numpy as np

    from gptpipe.dataset.windows import evaluation_windows
    from gptpipe.evaluation.documents import Documents, TextTokens
    from gptpipe.evaluation.score import score
    from gptpipe.tokenizer import get_tokenizer

    model = _model(sizes, precision)

    def run(ids: Any) -> float:
        stream, nothing = ids.flatten().numpy(), np.zeros(1, dtype=np.int64)
        text = Documents.bare(TextTokens(stream), get_tokenizer(), nothing, nothing + len(stream))
        begins = np.array([[i * (sizes.context + 1), 0, 0] for i in range(len(ids))])
        windows = evaluation_windows(sizes.context + 1, sizes.context) + begins
        tokens = sizes.batch * sizes.context
        return float(score(model, text, windows, batch_tokens=tokens, precision=precision).nats)

    return run


def _their_scores(sizes: Sizes, precision: str) -> Callable[[Any], float]:
    import torch

    model = _theirs(sizes, precision)

    @torch.no_grad()
    def run(ids: Any) -> float:
        nats = 0.0
        for some in ids.to(sizes.device).split(sizes.batch):
            logits = model(some[:, :-1]).logits
            nats += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), some[:, 1:].flatten()))
        return nats

    return run


def agreement(_options: argparse.Namespace, sizes: Sizes) -> dict[str, float]:
    """How far the losses of a few float32 steps are from the same ones on the CPU."""
    import torch

    from gptpipe import GPT, ModelConfig
    from gptpipe.train.adamw import AdamW

    losses: dict[str, list[float]] = {}
    tokens = torch.randint(0, 1000, (8, 129), generator=torch.Generator().manual_seed(2))
    for device in ("cpu", sizes.device):
        torch.manual_seed(0)
        model = GPT(ModelConfig(vocab_size=1000, n_layer=2, n_embd=128, n_head=2, context_length=128)).to(device)
        groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
        optimizer = AdamW(groups, learning_rate=1e-3, betas=(0.9, 0.95), epsilon=1e-8)
        here = tokens.to(device)
        losses[device] = []
        for _ in range(20):
            loss = model(here[:, :-1], here[:, 1:]) / here[:, 1:].numel()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[device].append(float(loss))
    mine, theirs = losses[sizes.device], losses["cpu"]
    far = max(abs(a - b) for a, b in zip(mine, theirs, strict=True))
    return {"far": far, "first": mine[0], "last": mine[-1]}


def resume(options: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    """A training, and one that goes on from its middle checkpoint in another folder; what that costs, unless quick."""
    from gptpipe.config import ModelConfig, TrainConfig
    from gptpipe.launch.training import train

    data, work = _dataset(sizes), Path(os.environ["GPTPIPE_WORK"])
    made: dict[str, Any] = {"free": 0.0}
    for kind in ("deterministic", *([] if options.quick else ["free"])):
        config = TrainConfig(
            steps=8, warmup_steps=1, batch_size=sizes.batch, device=sizes.device, deterministic=kind != "free",
            log_every=2, checkpoint_every=4, validate_every=0, validate_tokens=1024, precision="bfloat16",
        )  # fmt: skip
        whole = train(ModelConfig(**sizes.shape()), config, data=data, out=str(work / f"resume-{kind}"))
        lines = map(json.loads, (Path(whole.training) / "metrics.jsonl").read_text().splitlines())
        made[kind] = max(line["train/tokens_per_second"] for line in lines if line["step"] > 2)
        if kind == "deterministic":
            again = work / "resumed" / Path(whole.training).name
            middle = Path(whole.training) / "step-00000004"
            shutil.copytree(middle, again / middle.name)
            other = train(ModelConfig(**sizes.shape()), config, data=data, out=str(work / "resumed"))
            contents = [(Path(each.checkpoint) / "model.safetensors").read_bytes() for each in (whole, other)]
            made["same"] = contents[0] == contents[1]
    return made


WORKS: dict[str, Callable[[argparse.Namespace, Sizes], Any]] = {
    "device": device,
    "loss": loss_of_a_chunk,
    "step": step_speed,
    "profile": shares,
    "trainer": trainer,
    "decoding": decoding,
    "scoring": scoring,
    "agreement": agreement,
    "resume": resume,
}


if __name__ == "__main__":
    main()
