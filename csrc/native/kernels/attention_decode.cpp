// Attention of a decoding step over a cache; the number of positions that it holds is read from memory.
#include "kernels/attention_rows.h"

namespace nn::NN_LEVEL {

template <class T>
static bool decode_attention(const Call& call) {
    FewQueries<T> a{};
    a.o = heads<T>(call, 0);
    a.q = heads<const T>(call, 1), a.k = heads<const T>(call, 2), a.v = heads<const T>(call, 3);
    a.lengths = ints(call, 4);
    a.scale = (float)number(call, 0) * log2_e;
    a.sight = {a.k.length, (int64_t)number(call, 1), true};
    if (a.k.heads == 0 || a.q.heads % a.k.heads) return false;
    attend_few(a);
    return true;
}
NN_KERNEL(
    "decode_attention(q[B,H,T,D], k[B,G,S,D], v[B,G,S,Dv], lengths[B]:int; scale, window=0) -> o[B,H,T,Dv]",
    decode_attention, float, bf16)

}  // namespace nn::NN_LEVEL
