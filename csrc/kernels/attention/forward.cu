// nn_attention_forward: what is checked, and which kernel a call takes.
#include "forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "check.h"

namespace nn {

int heads_in_tile(const nn_attention& a, int tile_rows) {
    const int64_t ratio = a.heads / a.groups, alone = ceil_div(a.queries, tile_rows) * ratio;
    const bool fuller = ceil_div(a.queries * ratio, tile_rows) * 10 < alone * 9;
    return fuller && a.queries * ratio <= ATTENTION_MAX_LENGTH ? static_cast<int>(ratio) : 1;
}

namespace {

enum Path { FLOAT = 0, SM75 = 1, SM80 = 2 };

bool multiples_of_8(const int64_t (&strides)[3]) {
    return strides[0] % 8 == 0 && strides[1] % 8 == 0 && strides[2] % 8 == 0;
}

Path path_of(const nn_attention& a, const Device& device) {
    const int64_t width = std::max(a.width, a.value_width);
    const bool even = a.width % 8 == 0 && a.value_width % 8 == 0 && multiples_of_8(a.q_strides) &&
                      multiples_of_8(a.k_strides) && multiples_of_8(a.v_strides) &&
                      multiples_of_8(a.o_strides) &&
                      aligned(a.q, 16) && aligned(a.k, 16) && aligned(a.v, 16) && aligned(a.o, 16);
    if (!even || !(a.scale > 0.0f) || a.dtype == NN_FLOAT32) return FLOAT;
    if (device.capability >= 80) return SM80;
    return device.capability >= 75 && a.dtype == NN_FLOAT16 && width <= 128 ? SM75 : FLOAT;
}

}  // namespace
}  // namespace nn

NN_API int nn_attention_forward_path(const nn_attention* call, int32_t* path) {
    nn_attention a;
    NN_TRY(nn::read_call(&a, call, "call"));
    NN_REQUIRE(path, "path: a null pointer");
    nn::Device device;
    NN_TRY(nn::current_device(&device));
    *path = nn::path_of(a, device);
    return NN_OK;
}

NN_API int nn_attention_forward(const nn_attention* call, nn_stream stream) {
    nn_attention a;
    NN_TRY(nn::read_call(&a, call, "call"));
    if (a.batch == 0 || a.heads == 0 || a.queries == 0) return NN_OK;
    nn::Device device;
    NN_TRY(nn::current_device(&device));
    if (nn::path_of(a, device) == nn::FLOAT) return nn::launch_forward_float(a, device, nn::native(stream));
    return a.dtype == NN_FLOAT16 ? nn::launch_forward_half(a, device, nn::native(stream))
                                 : nn::launch_forward_bfloat16(a, device, nn::native(stream));
}
