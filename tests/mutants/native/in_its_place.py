"""A pytest plugin: nn.backends.native.nn_native is the module that NN_MUTANT names, for this process."""

import importlib.machinery
import importlib.util
import os
import sys

NAME = "nn.backends.native.nn_native"
loader = importlib.machinery.ExtensionFileLoader(NAME, os.environ["NN_MUTANT"])
spec = importlib.util.spec_from_file_location(NAME, os.environ["NN_MUTANT"], loader=loader)
assert spec is not None
sys.modules[NAME] = importlib.util.module_from_spec(spec)
loader.exec_module(sys.modules[NAME])
