"""How well a model predicts held-out text, in units that do not depend on its tokenizer."""

from nn.eval.bits_per_byte import bits_per_byte, compressed_bits_per_byte, negative_log_likelihood, perplexity

__all__ = ["bits_per_byte", "compressed_bits_per_byte", "negative_log_likelihood", "perplexity"]
