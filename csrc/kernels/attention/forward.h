// The kernels of nn_attention_forward, each behind a function that launches it; forward.cu checks, chooses.
#pragma once

#include "device/launch.h"
#include "nn/attention.h"

namespace nn {

// How many heads of a group share a tile (the kernels' `pack`): all of them where the queries of one would
// leave much of it empty.
int heads_in_tile(const nn_attention& a, int tile_rows);

int launch_forward_float(const nn_attention& a, const Device& device, cudaStream_t stream);
int launch_forward_half(const nn_attention& a, const Device& device, cudaStream_t stream);
int launch_forward_bfloat16(const nn_attention& a, const Device& device, cudaStream_t stream);

}  // namespace nn
