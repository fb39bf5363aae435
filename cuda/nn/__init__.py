"""cuda.nn: CUDA without a card (cuda.nn.emulator).  `cuda` itself is a namespace shared with NVIDIA's
packages."""
