"""nn/router.h"""

_SIZES = "tokens:i64 num_experts:i64 k:i64 renormalize:i32 experts_dtype:i32"

FUNCTIONS = {
    "nn_router_topk_forward": f"weights* experts* probs* logits* {_SIZES} dtype:i32 stream*",
    "nn_router_topk_backward": f"dlogits* dweights* weights* experts* probs* {_SIZES} stream*",
    "nn_router_jitter_forward": "y* x* counter* count:i64 epsilon:f64 dtype:i32 stream*",
}
