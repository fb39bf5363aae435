"""Reading and writing other projects' checkpoints."""
