"""nn/norm.h"""

FUNCTIONS = {
    "nn_rms_norm_forward": "y* rstd* x* weight* rows:i64 cols:i64 eps:f32 dtype:i32 stream*",
}
