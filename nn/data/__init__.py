"""From text to batches: documents → tokenizer → token file → loader.

    train, held_out = split(read_documents("stdlib"))
    tokenizer = train_bpe([document.text for document in train], vocab_size=2048)
    write_tokens("train.tokens", train, tokenizer)
    inputs, targets = Loader(TokenShard("train.tokens"), batch_size=8, seq_len=256).next()"""

from nn.data.dataset import DataLoader, TextDataset
from nn.data.documents import Document, data_hash, read_documents, split
from nn.data.loader import Loader
from nn.data.shard import ShardInfo, TokenShard, write_tokens
from nn.data.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer, load_tokenizer, train_bpe

__all__ = [
    "BPETokenizer", "ByteTokenizer", "DataLoader", "Document", "Loader", "ShardInfo", "TextDataset",
    "TokenShard", "Tokenizer", "data_hash", "load_tokenizer", "read_documents", "split", "train_bpe",
    "write_tokens",
]
