"""Write a model as a Hugging Face folder with Mixtral's tensor names, and read it back to the same bits.

`transformers.MixtralForCausalLM.from_pretrained` reads that folder, too; Transformers is not needed here.

Try: python examples/exchange_with_hugging_face.py"""

import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from nn import MoETransformer


def main() -> list[str]:
    """Save, look into the folder, load, compare; the names of the tensors."""
    model = MoETransformer.tiny(seed=1)
    ids = np.array([[1, 2, 3, 4]])
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        names = sorted(load_file(Path(folder) / "model.safetensors"))
        again = MoETransformer.from_pretrained(folder)
    print(f"{config['architectures'][0]} of {config['num_local_experts']} experts, {len(names)} tensors:")
    for name in [names[0], *(n for n in names if ".layers.0." in n and "experts.0" in n)]:
        print(f"  {name}")
    assert again.config == model.config
    assert np.array_equal(again(ids).numpy(), model(ids).numpy())
    print("read back: the logits are equal to the last bit")
    return names


if __name__ == "__main__":
    main()
