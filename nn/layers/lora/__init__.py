"""LoRA (Hu et al. 2021, arXiv 2106.09685): frozen weights, and a correction of low rank that is trained.

    y = x Wᵀ + b + γ (drop(x) Aᵀ) Bᵀ,   A [r,in], B [out,r],   γ = α / r, or α / √r (Kalajdzievski 2023)

B starts at 0: the model computes to the bit what it did.  Linear layers of any model, and the experts of a
mixture, one A and one B for each of them.  Names of the model's own parameters do not change; the adapters
stand beside them: "layers.0.self_attn.q_proj.adapter.lora_A".

    lora = LoRA(model, LoRASettings(r=8, targets=("q_proj", "k_proj", "v_proj")))
    optimizer = AdamW(lora.named_parameters(), lr=1e-3)
    lora.merge()                         # W ← W + γ B A: as fast as without
    with lora.disabled(): ...            # the model as it was

adapter.py: one correction.  layers.py: the layers that have one.  attach.py: all those of a model.
Files in PEFT's layout: nn/interop/peft.py."""

from nn.layers.lora.adapter import Adapter, LoRASettings
from nn.layers.lora.attach import Adapted, LoRA
from nn.layers.lora.layers import LoRAExperts, LoRALinear

__all__ = ["Adapted", "Adapter", "LoRA", "LoRAExperts", "LoRALinear", "LoRASettings"]
