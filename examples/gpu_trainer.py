"""Train a small mixture of experts on one sentence, on a GPU, and let it write there.

Where there is no GPU it trains on the CPU; --device emulated runs the same CUDA kernels on the CPU.

Try: python examples/gpu_trainer.py --device emulated --steps 20"""

import argparse

import numpy as np

from nn import MoETransformer, MoETransformerConfig
from nn.backends import open_device
from nn.data import ByteTokenizer, Loader
from nn.generate import SamplingConfig, generate
from nn.optim import AdamW, create_schedule
from nn.train.gpu_trainer import GpuTrainer
from nn.train.update import HostUpdate, Update

SENTENCE = "She sells sea shells by the sea shore. "
SHAPE = MoETransformerConfig(vocab_size=259, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64,
                             num_experts=4, top_k=2, max_seq_len=64)


def main(device: str = "auto", steps: int = 60) -> list[float]:
    """Train, and write; the loss of every step."""
    place = open_device(device)
    model = MoETransformer(SHAPE).to(place)
    print(f"training on {place.name if place else 'the CPU'}")
    update: Update
    if place:
        update = GpuTrainer(model)         # the first step is queued, the second recorded, the rest replayed
    else:
        update = HostUpdate(model, AdamW(model.named_parameters(), lr=2e-2), clip=1.0, seed=0)
    tokenizer = ByteTokenizer()
    loader = Loader(np.array(tokenizer.encode(SENTENCE * 40)), batch_size=8, seq_len=32, seed=0)
    schedule = create_schedule("cosine", lr=2e-2, steps=steps, warmup=5)
    losses = []
    for step in range(steps):
        metrics, norm = update([loader.next()], step=step + 1, lr=schedule(step))
        losses.append(metrics["loss"])
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step + 1:3}  loss {losses[-1]:.3f}  gradient norm {norm:.2f}")
    ids = list(generate(model, tokenizer.encode("She"), SamplingConfig(max_tokens=36, temperature=0.0)))
    print("it writes: She" + tokenizer.decode(ids))
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cuda, emulated or cpu")
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    main(given.device, given.steps)
