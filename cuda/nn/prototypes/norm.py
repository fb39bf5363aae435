"""nn/norm.h"""

_SIZES = "rows:i64 cols:i64"
_WORKSPACE = "workspace* workspace_bytes:i64 stream*"

FUNCTIONS = {
    "nn_rms_norm_forward": f"y* rstd* x* weight* {_SIZES} eps:f32 dtype:i32 stream*",
    "nn_rms_norm_residual_forward": f"y* sum* rstd* x* residual* weight* {_SIZES} eps:f32 dtype:i32 stream*",
    "nn_rms_norm_workspace_size": f"{_SIZES} -> i64",
    "nn_rms_norm_backward": f"dx* dweight* dy* x* weight* rstd* dresidual* {_SIZES} dtype:i32 {_WORKSPACE}",
    "nn_layer_norm_forward": f"y* mean* rstd* x* weight* bias* {_SIZES} eps:f32 dtype:i32 stream*",
    "nn_layer_norm_workspace_size": f"{_SIZES} -> i64",
    "nn_layer_norm_backward": f"dx* dweight* dbias* dy* x* weight* mean* rstd* {_SIZES} dtype:i32 "
                              f"{_WORKSPACE}",
}
