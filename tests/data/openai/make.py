"""Writes this folder's checkpoint as OpenAI published GPT-2, with TensorFlow (2.x): `python make.py`.

What stands in each tensor is a function of its name, so that the test can make the same without TensorFlow.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

HPARAMS = {"n_vocab": 300, "n_ctx": 12, "n_embd": 16, "n_head": 2, "n_layer": 2}


def tensors() -> dict[str, np.ndarray]:
    """OpenAI's names and shapes, float32."""
    width = HPARAMS["n_embd"]
    shapes: dict[str, tuple[int, ...]] = {
        "wte": (HPARAMS["n_vocab"], width),
        "wpe": (HPARAMS["n_ctx"], width),
        "ln_f/g": (width,),
        "ln_f/b": (width,),
    }
    for layer in range(HPARAMS["n_layer"]):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h{layer}/{norm}/g": (width,), f"h{layer}/{norm}/b": (width,)}
        for name, wide in (("attn/c_attn", 3), ("mlp/c_fc", 4)):
            shapes |= {f"h{layer}/{name}/w": (1, width, wide * width), f"h{layer}/{name}/b": (wide * width,)}
        for name, wide in (("attn/c_proj", 1), ("mlp/c_proj", 4)):
            shapes |= {f"h{layer}/{name}/w": (1, wide * width, width), f"h{layer}/{name}/b": (width,)}
    found = {}
    for name, shape in shapes.items():
        draws = np.random.default_rng(zlib.crc32(name.encode()))
        found[f"model/{name}"] = (draws.integers(-64, 65, shape) / 256).astype(np.float32)
    return found


def main() -> None:
    import tensorflow as tf

    folder = Path(__file__).parent
    (folder / "hparams.json").write_text(json.dumps(HPARAMS))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [
            tf.compat.v1.get_variable(name, initializer=value, use_resource=False) for name, value in tensors().items()
        ]
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(variables)
        saver.save(session, str(folder / "model.ckpt"), write_meta_graph=False)


if __name__ == "__main__":
    main()
