"""The command `cuda-nn`: one thin module per verb; the work is in nn.train, nn.generate, nn.eval, nn.flops.

A verb's module is named after it, opens with what its --help says, and has `run(argv) -> exit status`."""
