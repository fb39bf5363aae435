"""nn/moe.h"""

FUNCTIONS = {
    "nn_moe_plan": "order* inverse* offsets* experts* pairs:i64 num_experts:i64 index_dtype:i32 "
                   "workspace* workspace_bytes:i64 stream*",
    "nn_moe_plan_workspace_size": "pairs:i64 num_experts:i64 -> i64",
    "nn_moe_dispatch_forward": "xs* x* order* tokens:i64 choices:i64 width:i64 dtype:i32 stream*",
    "nn_moe_dispatch_backward": "dx* dxs* inverse* tokens:i64 choices:i64 width:i64 dtype:i32 stream*",
    "nn_moe_combine_forward": "y* ys* weights* inverse* tokens:i64 choices:i64 width:i64 dtype:i32 stream*",
    "nn_moe_combine_backward": "dys* dweights* dy* ys* weights* inverse* tokens:i64 choices:i64 width:i64 "
                               "dtype:i32 stream*",
    "nn_grouped_linear_forward": "y* x* weight* offsets* order* choices:i64 rows:i64 num_experts:i64 "
                                 "inputs:i64 outputs:i64 dtype:i32 stream*",
    "nn_grouped_swiglu_forward": "y* hidden* x* weight* offsets* order* choices:i64 rows:i64 num_experts:i64 "
                                 "inputs:i64 width:i64 dtype:i32 stream*",
    "nn_grouped_linear_backward_input": "dx* dy* weight* offsets* rows:i64 num_experts:i64 inputs:i64 "
                                        "outputs:i64 dtype:i32 stream*",
    "nn_grouped_linear_backward_weight": "dweight* dy* x* offsets* order* choices:i64 rows:i64 "
                                         "num_experts:i64 inputs:i64 outputs:i64 dtype:i32 stream*",
    "nn_grouped_linear_path": "path* inputs:i64 outputs:i64 dtype:i32",
    "nn_moe_balance_loss_forward": "loss* load* probs* experts* tokens:i64 choices:i64 num_experts:i64 "
                                   "coefficient:f32 index_dtype:i32 workspace* workspace_bytes:i64 stream*",
    "nn_moe_balance_loss_workspace_size": "tokens:i64 num_experts:i64 -> i64",
    "nn_moe_balance_loss_backward": "dprobs* dloss* load* tokens:i64 num_experts:i64 coefficient:f32 stream*",
    "nn_moe_z_loss_forward": "loss* lse* logits* tokens:i64 num_experts:i64 coefficient:f32 workspace* "
                             "workspace_bytes:i64 stream*",
    "nn_moe_z_loss_workspace_size": "tokens:i64 -> i64",
    "nn_moe_z_loss_backward": "dlogits* dloss* logits* lse* tokens:i64 num_experts:i64 coefficient:f32 "
                              "stream*",
}
