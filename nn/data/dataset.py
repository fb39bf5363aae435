"""Windows by index and batches of one finite pass, for evaluation, experiments and loops written by hand.

    dataset = TextDataset(tokenizer.encode(text), seq_len=256)      # x, y = dataset[0]
    for x, y in DataLoader(dataset, batch_size=8, shuffle=True): ...

Training uses `Loader`, which has no end and can be resumed."""

from collections.abc import Iterator, Sequence

import numpy as np

from nn.data.loader import epoch_order, gather, num_windows, token_array
from nn.data.shard import TokenShard
from nn.errors import InputError


class TextDataset:
    """Item i is (inputs, targets), int64 [T]: tokens i·T … i·T + T − 1, and those one further on.
    Fewer than T tokens may be left over at the end, in no window."""

    def __init__(self, tokens: TokenShard | np.ndarray | Sequence[int], seq_len: int) -> None:
        self.tokens = token_array(tokens if isinstance(tokens, TokenShard) else np.asarray(tokens), seq_len)
        self.seq_len = seq_len

    def __len__(self) -> int:
        return num_windows(len(self.tokens), self.seq_len)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        inputs, targets = self.batch(np.array([index % len(self)]))
        return inputs[0], targets[0]

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Several windows at once: inputs and targets, int64 [B,T]."""
        return gather(self.tokens, indices * self.seq_len, self.seq_len)


class DataLoader:
    """One pass over a dataset per `for` loop, in order or, with `shuffle`, in a new seeded order each time.
    The last batch is smaller where the windows do not divide evenly, or left out with `drop_last`."""

    def __init__(self, dataset: TextDataset, batch_size: int, *, shuffle: bool = False, seed: int = 0,
                 drop_last: bool = False) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size: {batch_size}; give 1 or more")
        self.dataset, self.batch_size, self.drop_last = dataset, batch_size, drop_last
        self.shuffle, self.seed = shuffle, seed
        self.epoch = 0      # passes begun so far

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        count, epoch = len(self.dataset), self.epoch
        self.epoch += 1
        order = epoch_order(self.seed, epoch, count)[0] if self.shuffle else np.arange(count)
        for i in range(len(self)):
            yield self.dataset.batch(order[i * self.batch_size:(i + 1) * self.batch_size])
