"""Optimizers, gradient clipping and learning-rate schedules.

    optimizer = create_optimizer("adamw", model.named_parameters(), lr=1e-3)
    schedule = create_schedule("cosine", lr=1e-3, steps=1000, warmup=50)
    norm = grad_norm(model.parameters())
    optimizer.step(lr=schedule(optimizer.steps), grad_scale=clip_scale(norm, 1.0))"""

from nn.optim.adamw import AdamW, ParamGroup
from nn.optim.clip import clip_grad_norm, clip_scale, grad_norm
from nn.optim.factory import create_optimizer, create_schedule
from nn.optim.muon import Muon

__all__ = ["AdamW", "Muon", "ParamGroup", "clip_grad_norm", "clip_scale", "create_optimizer",
           "create_schedule", "grad_norm"]
