"""The data plane against its ceilings and its rivals, both sides in turn in one process tree.

Usage: python tests/benchmarks/data.py tokenize|flow|disk|loader|cold|memory|open [--copies 10] [--workers 2]
           [--work FOLDER] [--gpt2 FOLDER]

The text is the running Python's standard library, `--copies` times (31.5 MB each), one folder a copy.

tokenize  files to committed dataset, against tiktoken encoding the same texts from memory and writing nothing, and
          against Hugging Face datasets.map with a fast GPT-2 tokenizer (vocab.bpe and encoder.json in --gpt2)
flow      the Prefect flow against the function in it; PREFECT_API_URL names a server that is up
disk      bytes on disk against raw uint16, and how fast the pages are read back
loader    shuffled (8, 1024) batches against random windows of a numpy.memmap
cold      an epoch from an empty cache against reading the same objects with s3fs; the S3 settings name a server
memory    peak resident memory of tokenizing one file of 2 GB with two workers, all processes together
open      opening a dataset whose index lists 300,000 shards, to the first batch
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gptpipe.config.settings import prepare_environment

SHARDS = 300_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=BENCHMARKS)
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, default=Path(".gptpipe/benchmarks"))
    parser.add_argument("--gpt2", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data" / "gpt2")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ.setdefault("GPTPIPE_HOME", str(options.work / "home"))
    options.work.mkdir(parents=True, exist_ok=True)
    prepare_environment()
    BENCHMARKS[options.what](options)


def corpus(options: argparse.Namespace) -> Path:
    """The standard library so many times, made once."""
    root = options.work / f"corpus-{options.copies}"
    library = Path(sysconfig.get_paths()["stdlib"])
    if not (root / "done").exists():
        for file in sorted(library.rglob("*.py")):
            name = file.relative_to(library)
            if name.parts[0] in ("site-packages", "dist-packages") or not _is_text(file):
                continue
            for copy in range(options.copies):
                target = root / "text" / str(copy) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
        (root / "done").touch()
    return Path(root / "text")


def _is_text(file: Path) -> bool:
    try:
        return bool(file.read_bytes().decode())
    except UnicodeDecodeError:
        return False


def timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def report(name: str, ours: list[float], other: list[float], unit: str = "s") -> None:
    a, b = statistics.median(ours), statistics.median(other)
    print(f"{name}: ours {a:.3f} {unit}, reference {b:.3f} {unit}, speed {b / a:.3f} x  {ours} {other}", flush=True)


# ---- tokenize


def tokenize_once(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """The whole build in a process of its own; `seconds` begins when the library is imported."""
    shutil.rmtree(out, ignore_errors=True)
    for file in corpus(options).rglob("*.py"):
        file.read_bytes()  # the reference has its texts in memory; here they are at least in the page cache
    code = (
        "import json, sys, time\n"
        "from gptpipe.config import DataConfig\n"
        "from gptpipe.corpus.build import tokenize\n"
        "if __name__ == '__main__':\n"
        "    began = time.perf_counter()\n"
        "    made = tokenize(DataConfig(corpus=[sys.argv[1]], workers=int(sys.argv[3])), sys.argv[2])\n"
        "    print(json.dumps({'seconds': time.perf_counter() - began, **made.as_dict()}))\n"
    )
    script = options.work / "build.py"
    script.write_text(code)
    command = [sys.executable, str(script), str(corpus(options)), str(out), str(options.workers)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(done.splitlines()[-1])
    return found


def _encode(files: list[str], ready: Any, results: Any, how: str) -> None:
    from gptpipe.tokenizer import get_tokenizer

    encoding = get_tokenizer("gpt2").encoding
    texts = [Path(file).read_text("utf-8") for file in files]
    encode = getattr(encoding, how)
    encode("warm")
    ready.wait()
    began = time.time()
    for text in texts:
        encode(text)
    results.put((began, time.time()))


def ceiling(options: argparse.Namespace, how: str) -> float:
    """Seconds from the first process's start of encoding to the last one's end, texts in memory, nothing kept."""
    files = sorted((str(f) for f in corpus(options).rglob("*.py")), key=lambda f: -Path(f).stat().st_size)
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(options.workers), context.Queue()
    processes = [
        context.Process(target=_encode, args=(files[i :: options.workers], ready, results, how))
        for i in range(options.workers)
    ]
    for process in processes:
        process.start()
    spans = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return max(end for _, end in spans) - min(began for began, _ in spans)


def hugging_face(options: argparse.Namespace) -> float:
    """datasets.map with a fast tokenizer over the same texts, from files to a saved folder."""
    code = """
import sys, time
from pathlib import Path
from datasets import Dataset
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

root, gpt2, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
fast = ByteLevelBPETokenizer(str(gpt2 / "encoder.json"), str(gpt2 / "vocab.bpe"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast._tokenizer)

def encode(batch):
    return {"input_ids": tokenizer(batch["text"], return_attention_mask=False)["input_ids"]}

if __name__ == "__main__":
    began = time.perf_counter()
    texts = Dataset.from_dict({"text": [p.read_text("utf-8") for p in sorted(root.rglob("*.py"))]})
    texts.map(encode, batched=True, batch_size=100, num_proc=workers, remove_columns=["text"]).save_to_disk(out)
    print(time.perf_counter() - began)
"""
    out = options.work / "hugging-face"
    shutil.rmtree(out, ignore_errors=True)
    script = options.work / "hugging_face.py"
    script.write_text(code)
    environment = {
        **os.environ,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HOME": str(options.work / "hf"),
        "TQDM_DISABLE": "1",
    }
    command = [sys.executable, str(script), str(corpus(options)), str(options.gpt2), str(out), str(options.workers)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return float(done.splitlines()[-1])


def bench_tokenize(options: argparse.Namespace) -> None:
    size = sum(file.stat().st_size for file in corpus(options).rglob("*.py"))
    print(f"{size / 1e6:.0f} MB, {options.workers} processes")
    ours, arrays, lists, hf = [], [], [], []
    for _ in range(options.rounds):
        arrays.append(ceiling(options, "encode_to_numpy"))
        ours.append(tokenize_once(options, options.work / "out")["seconds"])
        lists.append(ceiling(options, "encode_ordinary"))
    hf.append(hugging_face(options))
    report("against tiktoken.encode_to_numpy in memory", ours, arrays)
    report("against tiktoken.encode_ordinary in memory", ours, lists)
    report("against datasets.map", ours, hf)


# ---- the flow


def bench_flow(options: argparse.Namespace) -> None:
    from flows import begin

    begin()
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY
    from prefect.settings.context import temporary_settings

    from flows.tokenize import TokenizeParameters, tokenize
    from gptpipe.config import DataConfig
    from gptpipe.corpus.build import tokenize as make

    config = DataConfig(corpus=[str(corpus(options))], workers=options.workers)  # type: ignore[list-item]
    bare, flow = [], []
    for _ in range(options.rounds):
        for kind, seconds in (("bare", bare), ("flow", flow)):
            out = options.work / kind
            shutil.rmtree(out, ignore_errors=True)
            if kind == "bare":
                seconds.append(timed(lambda out=out: make(config, str(out))))
            else:
                # as `gptpipe run` runs flows; with a heartbeat a flow ends when its thread's second is over
                with temporary_settings(updates={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
                    seconds.append(timed(lambda out=out: tokenize(TokenizeParameters(data=config, storage=str(out)))))
    report("the flow against the function", flow, bare)


# ---- what is on the disk


def bench_disk(options: argparse.Namespace) -> None:
    from gptpipe.dataset.dataset import open_dataset
    from gptpipe.dataset.rows import ShardReader

    dataset = open_dataset(tokenize_once(options, options.work / "out")["dataset"])
    size = sum(file.stat().st_size for file in Path(dataset.url).rglob("*.parquet"))
    tokens = dataset.total("tokens")
    print(f"{tokens:,} tokens, {size:,} bytes: {size / (2 * tokens):.4f} x raw uint16")
    contents = [Path(dataset.url, path).read_bytes() for path in dataset.index().paths()]
    rates = []
    buffer = np.empty(2_100_000, np.uint16)  # a row group and its separators
    for _ in range(options.rounds):
        began, count = time.perf_counter(), 0
        for content in contents:
            reader = ShardReader(content)
            count += sum(len(reader.stream(group, 50256, buffer)) for group in range(reader.row_groups))
        rates.append(count / (time.perf_counter() - began) / 1e6)
    print(f"pages read back: {statistics.median(rates):.0f} M tokens/s on one core {rates}")


# ---- the loader


def loader_of(url: str, cache: Path, **values: Any) -> Any:
    from gptpipe.config import TrainConfig
    from gptpipe.dataset.cache import TokenCache
    from gptpipe.dataset.dataset import open_dataset
    from gptpipe.dataset.loader import TrainLoader
    from gptpipe.dataset.stream import TokenStream

    stream = TokenStream(open_dataset(url), "train", TokenCache(cache, 10**12))
    return stream, TrainLoader(stream, context_length=1024, config=TrainConfig(batch_size=8, **values))


def bench_loader(options: argparse.Namespace) -> None:
    import torch

    made = tokenize_once(options, options.work / "out")
    stream, loader = loader_of(made["dataset"], options.work / "cache")
    stream.prepare()
    raw = options.work / "raw.bin"
    stream.read(0, stream.length).tofile(raw)
    data = np.memmap(raw, dtype=np.uint16, mode="r")
    draw = torch.Generator().manual_seed(1)

    def reference() -> None:
        for _ in range(2000):
            places = torch.randint(len(data) - 1025, (8,), generator=draw)
            x = torch.stack([torch.from_numpy(data[i : i + 1024].astype(np.int64)) for i in places])
            y = torch.stack([torch.from_numpy(data[i + 1 : i + 1025].astype(np.int64)) for i in places])
            assert x.shape == y.shape

    def ours() -> None:
        for _ in range(2000):
            loader.next_batch()

    ours(), reference()
    mine, other = [], []
    for _ in range(options.rounds):
        mine.append(timed(ours))
        other.append(timed(reference))
    report("2,000 batches of (8, 1024) against random windows of a memmap", mine, other)


def resident(kind: str) -> float:
    """Memory of this process in MB: VmHWM is the most there was, RssAnon what is its own now."""
    return int(Path("/proc/self/status").read_text().split(f"{kind}:")[1].split()[0]) / 1024


def bench_cold(options: argparse.Namespace) -> None:
    from gptpipe import storage
    from gptpipe.dataset.dataset import open_dataset

    url = os.environ["GPTPIPE_STORAGE"]
    made = tokenize_once(options, options.work / "out")
    remote = f"{url}/cold"
    for entry in storage.list_files(made["dataset"]):
        storage.put_file(Path(entry.url), storage.join(remote, entry.path))
    paths = open_dataset(remote).index("train").paths()
    fs, _ = storage.filesystem(remote)

    def streamed() -> None:
        for path in paths:
            with fs.open(storage.join(remote, path), "rb") as stream:
                stream.read()

    mine, opened, other, parallel = [], [], [], []
    for _ in range(options.rounds):
        shutil.rmtree(options.work / "cold", ignore_errors=True)

        def ours() -> None:
            stream, loader = loader_of(remote, options.work / "cold")
            stream.prepare()
            for _ in range(100):
                loader.next_batch()
            loader.close()

        mine.append(timed(ours))
        opened.append(timed(streamed))
        other.append(timed(lambda: [fs.cat_file(storage.join(remote, path)) for path in paths]))
        parallel.append(timed(lambda: fs.cat([storage.join(remote, path) for path in paths])))
    report("cold cache to all decoded, against s3fs open().read() of the objects", mine, opened)
    report("the same against s3fs cat_file() of one after another", mine, other)
    report("the same against s3fs cat() of all at once", mine, parallel)


# ---- memory, and a very large index


def bench_memory(options: argparse.Namespace) -> None:
    import psutil

    big = options.work / "big.txt"
    if not big.exists():
        texts = b"".join(file.read_bytes() for file in sorted(corpus(options).rglob("*.py")))
        with big.open("wb") as out:
            while out.tell() < 2_000_000_000:
                out.write(texts)
    peak = 0

    def watch(process: Any) -> None:
        nonlocal peak
        while process.is_running():
            try:
                family = [process, *process.children(recursive=True)]
                peak = max(peak, sum(p.memory_info().rss for p in family))
            except psutil.Error:
                pass
            time.sleep(0.05)

    out = options.work / "out-big"
    shutil.rmtree(out, ignore_errors=True)
    command = [str(Path(sys.executable).with_name("gptpipe")), "tokenize", "--corpus", str(big), "--out", str(out)]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--workers", "2"])
    threading.Thread(target=watch, args=(psutil.Process(process.pid),), daemon=True).start()
    process.wait()
    print(f"2 GB in one file, two workers: {peak / 1e6:.0f} MB at most, {time.perf_counter() - began:.0f} s")


def bench_open(options: argparse.Namespace) -> None:
    """One real shard of 50 row groups, listed 300,000 times."""
    from dataclasses import replace

    from gptpipe import storage
    from gptpipe.dataset.dataset import INDEX, MANIFEST, open_dataset
    from gptpipe.dataset.index import index_table

    root = options.work / "open"
    shutil.rmtree(root, ignore_errors=True)
    made = tokenize_once(options, options.work / "out")
    shutil.copytree(made["dataset"], root)
    dataset = open_dataset(str(root))
    real = max(dataset.index("train"), key=lambda file: file.tokens)
    names = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(2 * SHARDS)]
    offsets = np.arange(50) * 1_000_000
    simulated = replace(real, row_group_offsets=offsets, tokens=50_000_000, documents=40_000)
    files = [
        replace(simulated, hash=names[n], path=f"train/{names[n]}.parquet", sha256=names[SHARDS + n])
        for n in range(SHARDS)
    ]
    files[SHARDS // 2] = real
    content = index_table(files)
    (root / INDEX).write_bytes(content)
    manifest = storage.read_json(str(root / MANIFEST))
    manifest["index_sha256"] = hashlib.sha256(content).hexdigest()
    storage.write_json(str(root / MANIFEST), manifest)
    code = (
        "import sys, time, torch\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from data import SHARDS, loader_of, resident\n"
        "import gptpipe.dataset.loader\n"
        "before = resident('VmHWM')\n"
        "began = time.perf_counter()\n"
        "stream, loader = loader_of(sys.argv[1], Path(sys.argv[2]), shuffle='two-level')\n"
        "opened = time.perf_counter() - began\n"
        "loader.order.places(np.arange(8))\n"
        "first = int(stream.starts[SHARDS // 2])\n"
        "windows = [stream.read(first + i * 1024, first + (i + 1) * 1024 + 1) for i in range(8)]\n"
        "print(f'{stream.length:,} tokens, index opened in {opened:.2f} s, first batch read at '\n"
        "      f'{time.perf_counter() - began:.2f} s, {resident(\"VmHWM\"):.0f} MB at most, {before:.0f} before')\n"
    )
    script = options.work / "open.py"
    script.write_text(code)
    shutil.rmtree(options.work / "cache-open", ignore_errors=True)
    subprocess.run(
        [sys.executable, str(script), str(root), str(options.work / "cache-open"), str(Path(__file__).parent)],
        check=True,
    )


BENCHMARKS = {
    "tokenize": bench_tokenize,
    "flow": bench_flow,
    "disk": bench_disk,
    "loader": bench_loader,
    "cold": bench_cold,
    "memory": bench_memory,
    "open": bench_open,
}

if __name__ == "__main__":
    main()
