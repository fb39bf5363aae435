"""cuda-nn VERB [options]: picks the verb; a failure that a user can cause becomes one line and a status.

0 done, 1 the computation failed, 2 the input is at fault, 130 stopped by Ctrl-C.      Try: cuda-nn --help"""

import contextlib
import errno
import importlib
import io
import logging
import os
import sys
import typing
from collections.abc import Callable, Sequence

from nn import __version__
from nn.errors import InputError, NonFiniteError
from nn.names import nearest

VERBS = {
    "train": "train a mixture-of-experts language model on text",
    "generate": "write text with a trained model",
    "eval": "measure a trained model on text, beside gzip and xz",
    "flops": "count a model's parameters and floating-point operations",
    "bench": "measure training and generation on this machine",
    "kernels": "run and check the CUDA kernels of a .cu file, without a GPU",
    "emulate": "run a program that nvcc built, without a GPU",
    "info": "show versions, processor, backends, and who runs which kernel",
}
HELP = f"""usage: cuda-nn VERB [options]

Train language models and write with them.  VERB is one of:

{chr(10).join(f"  {verb:<10} {about}" for verb, about in VERBS.items())}

cuda-nn VERB --help explains a verb; cuda-nn --version shows the version.

Begin with:
  cuda-nn train                     # a few minutes, on text that is on every machine: Python's own source
  cuda-nn generate --prompt "def "  # continue a text with the newest model
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words[0] if words else "--help"
    if verb in VERBS:
        return _guarded(f"cuda-nn {verb}", lambda: importlib.import_module(f"nn.cli.{verb}").run(words[1:]))
    if verb in ("-h", "--help", "help"):
        return _guarded("cuda-nn", lambda: print(HELP, end=""))
    if verb == "--version":
        return _guarded("cuda-nn", lambda: print(f"cuda-nn {__version__}"))
    guess = nearest(verb, VERBS)
    hint = f"Did you mean {guess}?" if guess else "cuda-nn --help lists them"
    return _fail("cuda-nn", f"{verb!r} is not a verb. {hint}", 2)


def _guarded(name: str, action: Callable[[], int | None]) -> int:
    """Run a verb.  What a user can cause ends in one line; all else is our defect and keeps its traceback."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError):       # closed, or not a text stream
            typing.cast(io.TextIOWrapper, stream).reconfigure(errors="replace")   # no é there: ?
    logging.basicConfig(format=f"{name}: %(levelname)s: %(message)s", level=logging.WARNING)
    try:
        status = action() or 0
        sys.stdout.flush()
        return status
    except SystemExit as stop:                # --help
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _fail(name, "stopped", 130)
    except BrokenPipeError:                   # our reader has gone, as in `| head`: there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except InputError as error:
        return _fail(name, str(error), 2)
    except OSError as error:
        return _fail(name, _os_error(error), 2)
    except NonFiniteError as error:
        return _fail(name, str(error), 1)
    except MemoryError as error:
        return _fail(name, f"not enough memory: {error}; take a smaller model, batch or seq_len", 1)


def _os_error(error: OSError) -> str:
    """What the system refused, and where, without the number."""
    text = error.strerror or str(error)
    if text == os.strerror(errno.ENOSPC):
        text += "; make room, or write to another disk"
    return f"{error.filename}: {text}" if error.filename else text


def _fail(name: str, message: str, status: int) -> int:
    print(f"{name}: error: {' '.join(message.split())}", file=sys.stderr)
    return status
