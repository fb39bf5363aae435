"""`python -m nn` is the command `cuda-nn`."""

import sys

from nn.cli.main import main

sys.exit(main())
