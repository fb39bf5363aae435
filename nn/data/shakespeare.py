"""Shakespeare, the text on which small language models are tried: a file that is here, else the one megabyte
that Andrej Karpathy put together ("tiny Shakespeare"), else some pages that come with this package.

    find_shakespeare()                  # shakespeare.txt or data/shakespeare.txt, else the pages
    find_shakespeare(download=True)     # asks the network before it takes the pages"""

import logging
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from nn.errors import InputError
from nn.files import replacing

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
OPENING = "First Citizen:"                                       # of what is there: no page of a gateway
HERE = (Path("shakespeare.txt"), Path("data/shakespeare.txt"))   # in this order; a download becomes the last
PAGES = Path(__file__).with_name("shakespeare.txt")              # sonnets and speeches, in the public domain
SECONDS = 15                                                     # to wait for an answer

log = logging.getLogger("nn.data")


def find_shakespeare(*, download: bool = False) -> Path:
    """A file of his text.  The network is asked only with `download`, and only where no file is here; that it
    gave nothing is a warning, which says what was taken instead."""
    for path in HERE:
        if path.is_file():
            return path
    if download:
        try:
            return _download(HERE[-1])
        except (OSError, HTTPException, InputError, UnicodeDecodeError) as error:
            log.warning("no Shakespeare from the network (%s); taking the %d kB that come with cuda-nn. For "
                        "more, put a text at %s", error, PAGES.stat().st_size // 1000, HERE[0])
    return PAGES


def _download(path: Path) -> Path:
    with urlopen(URL, timeout=SECONDS) as answer:
        text = answer.read().decode()
    if not text.startswith(OPENING):
        raise InputError(f"{URL} gave another text")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
