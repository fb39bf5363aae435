"""Train a small mixture of experts on one sentence and let it write: the whole loop, in the open.

Forward, loss, backward, clipping, AdamW, warm-up and cosine: what `cuda-nn train` does, without its files.
Takes a few seconds on a CPU.        Try: python examples/train_tiny.py"""

import numpy as np

from nn import MoETransformer, MoETransformerConfig
from nn.data import ByteTokenizer, Loader
from nn.generate import SamplingConfig, stream_text
from nn.optim import AdamW, clip_scale, create_schedule, grad_norm

SENTENCE = "She sells sea shells by the sea shore. "
SHAPE = MoETransformerConfig(vocab_size=259, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=64,
                             num_experts=4, top_k=2, max_seq_len=64)


def train(text: str, steps: int = 80, seed: int = 0) -> tuple[MoETransformer, list[float]]:
    """The trained model and the cross-entropy of every step, in nats per byte."""
    loader = Loader(np.array(ByteTokenizer().encode(text)), batch_size=8, seq_len=32, seed=seed)
    model = MoETransformer(SHAPE, seed=seed)
    optimizer = AdamW(model.named_parameters(), lr=2e-2)
    schedule = create_schedule("cosine", lr=2e-2, steps=steps, warmup=5)
    losses = []
    for step in range(steps):
        inputs, targets = loader.next()                        # [B,T] each
        total, figures = model.loss(inputs, targets)           # cross-entropy + balance loss + z-loss
        total.backward()
        scale = clip_scale(grad_norm(model.parameters()), max_norm=1.0)
        optimizer.step(lr=schedule(step), grad_scale=scale)
        optimizer.zero_grad()
        losses.append(figures["loss"])
    return model, losses


def main() -> list[float]:
    """Train, print how the loss fell and what the model writes; the losses."""
    model, losses = train(SENTENCE * 50)
    for step in (1, 10, 20, 40, len(losses)):
        print(f"step {step:2}   {losses[step - 1]:.3f} nats per byte")
    greedy = SamplingConfig(temperature=0, max_tokens=30)
    print("it writes: She sells" + "".join(stream_text(model, ByteTokenizer(), "She sells", greedy)))
    assert losses[-1] < 0.2 * losses[0], "it has not learned the sentence"
    return losses


if __name__ == "__main__":
    main()
