"""Other names of the verbs' options, so that commands written for other programs run as they are:

    python train_lm.py --model gpt-small --max-steps 100       cuda-nn train --model gpt-small --max-steps 100
    python sample.py --checkpoint checkpoints/step_100         cuda-nn generate --checkpoint ...
    python neoformer_x_fixed.py --train --epochs 1 --batch 8   cuda-nn train --train --epochs 1 --batch 8
    python scripts/estimate_flops.py --config FILE             cuda-nn flops --config FILE"""


class Moot(str):
    """An option that changes nothing; the text says why."""


TRAINED = {"run": "checkpoint", "ckpt": "checkpoint"}
SIZES = {"batch": "batch_size", "seq": "seq_len"}

# verb -> {name: the setting that is meant}
ALIASES: dict[str, dict[str, str]] = {
    "train": {**SIZES, "max_steps": "steps", "save_interval": "checkpoint_every",
              "train": Moot("it is what this verb does")},
    "generate": {**TRAINED, "max_new": "max_tokens", "temp": "temperature"},
    "eval": {**TRAINED, **SIZES, "eval": Moot("it is what this verb does; lm-eval's tasks are not run")},
    "flops": {"model": "preset", "seq": "seq_len"},
    "bench": {**SIZES, "model": "preset"},
}
