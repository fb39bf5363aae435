"""Models with packed weights (nn/packed), for inference: made by model.pack(format), kept in files that are
mapped (file.py)."""
