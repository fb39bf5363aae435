// A kernel's text, read once: what it takes and returns, and whether the arguments of a call fit.
//
// The text is the line of nn/backends/protocol.py, with marks that the native kernels need:
//     rms_norm(x[R,D], weight[D], eps) -> y[R,D], rstd[R,1]:float
//     adamw(&param[...]:float, grad[...], &m[...]:float, &v[...]:float; lr, ...)
//   &name              changed in place
//   :float :int :bool :bytes   float32, int64 or int32 (results: int64), bool, uint8; without a mark the
//                      element type is the call's own, T: that of the first such array (float32 if none is)
//   :bfloat16          that type, whatever the call's
//   outputs:O          a number that is the size of the axes of that letter
//   name[axes]=None    an optional array
//   y[...]?option      a result only where that option is not 0
//
// THE RULE of what is taken (everything else goes to the reference, counted, and said once):
//   - an array whose axes are only "..." lies dense in memory;
//   - in every other array the last axis is dense, whatever the strides of the axes before it;
//     axes that "..." stands for are walked with one stride;
//   - all sizes that share a letter agree; element types are as marked.
// What lies otherwise in memory the module copies first, unless it is changed in place or a step is recorded.
#pragma once
#include <string>
#include <vector>

#include "core/types.h"

namespace nn {

// T, float32, bfloat16, int64 or int32, bool, uint8, the type of a named argument (which is T's, here)
enum class Kind { same, wide, half, integer, boolean, bytes, like };
DType dtype_of(Kind kind, DType same);

struct Axis {
    char letter;   // 0: the constant; '.': whatever "..." stands for
    int64_t plus;  // E+1
};

struct Item {
    std::string name;
    bool is_array = false, optional = false, in_place = false, is_flag = false;
    double fallback = 0;  // default of a number
    bool has_default = false;
    Kind kind = Kind::same;
    char size_of = 0;  // a number: the letter of the axes whose size it is; '#': rows
    std::vector<Axis> axes;
    int wanted_by = -1;  // index among the numbers: a result only where that is not 0
};

struct Signature {
    std::string name, text;
    std::vector<Item> results, arguments;  // arguments: positional, then options
    int positional = 0;
    bool returns_number = false;
    int arrays() const;  // results and array arguments together
};

// Sizes by letter, and what "..." stood for.
struct Sizes {
    int64_t size[128];
    int64_t lead[max_axes + 3];
    int leads = -1;  // -1: not known yet
    Sizes();
};

Signature parse(const char* text);

// Takes an argument as it is: its sizes agree with the letters, its memory is as the rule says; `out` is then
// what the kernel sees ("..." as one axis).  Otherwise false, and why.
struct Given {
    void* data;
    int axes;
    const int64_t* shape;
    const int64_t* stride_bytes;
    DType dtype;
    int itemsize;
};
bool take(const Item& item, const Given& given, DType same, Sizes& sizes, Array& out, std::string& why);

void bind_number(const Item& item, double value, Sizes& sizes);  // k, num_experts, rows, ... name a size
bool result_shape(const Item& item, const Sizes& sizes, std::vector<int64_t>& shape);
const char* dtype_name(DType dtype);
int dtype_size(DType dtype);

}  // namespace nn
