#include "core/signature.h"

#include <cctype>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace nn {
namespace {

// "a[X,Y], b; c=1" at separators outside brackets
std::vector<std::string> split(const std::string& text) {
    std::vector<std::string> parts;
    std::string part;
    int depth = 0;
    for (char c : text + ",") {
        depth += (c == '[') - (c == ']');
        if (depth == 0 && (c == ',' || c == ' ' || c == '\n')) {
            if (!part.empty()) parts.push_back(part);
            part.clear();
        } else if (c != ' ') {
            part += c;
        }
    }
    return parts;
}

std::vector<Axis> parse_axes(const std::string& text) {
    std::vector<Axis> axes;
    for (const std::string& word : split(text)) {
        if (word == "...")
            axes.push_back({'.', 0});
        else if (std::isdigit(static_cast<unsigned char>(word[0])))
            axes.push_back({0, std::atoll(word.c_str())});
        else
            axes.push_back({word == "rows" ? '#' : word == "Dv" ? 'v' : word[0],
                            word.size() > 2 && word[1] == '+' ? std::atoll(word.c_str() + 2) : 0});
    }
    return axes;
}

Kind parse_kind(const std::string& word) {
    if (word == "float") return Kind::wide;
    if (word == "bfloat16") return Kind::half;
    if (word == "int") return Kind::integer;
    if (word == "bool") return Kind::boolean;
    if (word == "bytes") return Kind::bytes;
    return Kind::like;  // dlogits[R,V]:logits; all such are of the call's type here
}

char size_named(const std::string& number) {
    constexpr struct {
        const char* number;
        char letter;
    } known[] = {{"k", 'K'}, {"choices", 'K'}, {"num_experts", 'E'}, {"tokens", 'N'}, {"rows", '#'}};
    for (const auto& one : known)
        if (number == one.number) return one.letter;
    return 0;
}

Item parse_item(std::string word) {
    Item item;
    if (word[0] == '&') item.in_place = true, word.erase(0, 1);
    if (size_t place = word.find('='); place != std::string::npos) {
        const std::string value = word.substr(place + 1);
        item.has_default = true;
        item.optional = value == "None";
        item.is_flag = value == "True" || value == "False";
        item.fallback = item.is_flag ? value == "True" : std::atof(value.c_str());
        word.erase(place);
    }
    if (size_t place = word.find(':'); place != std::string::npos && word.find('[') < place) {
        item.kind = parse_kind(word.substr(place + 1));
        word.erase(place);
    }
    if (size_t place = word.find('['); place != std::string::npos) {
        item.is_array = true;
        item.axes = parse_axes(word.substr(place + 1, word.find(']') - place - 1));
        word.erase(place);
    }
    if (size_t place = word.find(':'); place != std::string::npos) {
        item.size_of = word[place + 1];
        word.erase(place);
    }
    item.name = word;
    if (!item.is_array && !item.size_of) item.size_of = size_named(word);
    return item;
}

int number_index(const Signature& signature, const std::string& name) {
    int index = 0;
    for (const Item& item : signature.arguments)
        if (!item.is_array) {
            if (item.name == name) return index;
            ++index;
        }
    throw std::logic_error(signature.name + ": no option " + name);
}

bool agree(int64_t& known, int64_t size) {
    if (known < 0) known = size;
    return known == size;
}

// Axes [first, last) as one: their size, and the stride with which all of them are walked.
bool collapse(const Given& given, int first, int last, int64_t& size, int64_t& stride) {
    size = 1, stride = 0;
    for (int i = last - 1; i >= first; --i) {
        if (given.shape[i] == 1) continue;
        if (size != 1 && given.stride_bytes[i] != stride * size) return false;
        if (size == 1) stride = given.stride_bytes[i];
        size *= given.shape[i];
    }
    return true;
}

bool fail(std::string& why, const Item& item, const std::string& reason) {
    why = item.name + ": " + reason;
    return false;
}

// Nothing is read of an array without elements: any strides do.
Given with_dense_strides(Given given, int64_t* stride) {
    bool empty = false;
    for (int i = 0; i < given.axes; ++i) empty |= given.shape[i] == 0;
    if (!empty) return given;
    int64_t bytes = given.itemsize;
    for (int i = given.axes - 1; i >= 0; --i) {
        stride[i] = bytes;
        bytes *= given.shape[i];
    }
    static double nowhere[8];
    given.data = nowhere;
    given.stride_bytes = stride;
    return given;
}

}  // namespace

Sizes::Sizes() {
    for (int64_t& one : size) one = -1;
}

int Signature::arrays() const {
    int count = static_cast<int>(results.size());
    for (const Item& item : arguments) count += item.is_array;
    return count;
}

Signature parse(const char* text) {
    Signature signature;
    signature.text = text;
    const std::string all = text;
    const size_t open = all.find('('), arrow = all.find(" -> ");
    const size_t close = all.rfind(')', arrow);
    signature.name = all.substr(0, open);
    const std::string inside = all.substr(open + 1, close - open - 1);
    const size_t semicolon = inside.find(';');
    for (const std::string& word : split(inside.substr(0, semicolon)))
        signature.arguments.push_back(parse_item(word));
    signature.positional = static_cast<int>(signature.arguments.size());
    if (semicolon != std::string::npos)
        for (const std::string& word : split(inside.substr(semicolon + 1)))
            signature.arguments.push_back(parse_item(word));
    if (arrow == std::string::npos) return signature;
    for (std::string word : split(all.substr(arrow + 4))) {
        if (word.find(":number") != std::string::npos) {  // one double, returned as a Python number
            Item item;
            item.name = word.substr(0, word.find(':'));
            item.is_array = true;
            item.axes = {{0, 1}};
            signature.results.push_back(item);
            signature.returns_number = true;
            continue;
        }
        std::string wanted;
        if (size_t place = word.find('?'); place != std::string::npos) {
            wanted = word.substr(place + 1);
            word.erase(place);
        }
        signature.results.push_back(parse_item(word));
        if (!wanted.empty()) signature.results.back().wanted_by = number_index(signature, wanted);
    }
    if (signature.arrays() > max_arrays ||
        static_cast<int>(signature.arguments.size()) > max_arrays + max_numbers)
        throw std::logic_error(signature.name + ": too many arguments");
    return signature;
}

bool take(const Item& item, const Given& array, DType same, Sizes& sizes, Array& out, std::string& why) {
    int64_t stride_if_empty[max_axes + 3];
    const Given given = with_dense_strides(array, stride_if_empty);
    const DType wanted = dtype_of(item.kind, same);
    const bool short_integer = item.kind == Kind::integer && given.dtype == DType::i32;
    if (given.dtype != wanted && !short_integer)
        return fail(why, item,
                    std::string(dtype_name(given.dtype)) + " where " + dtype_name(wanted) + " is taken");
    const bool leading = !item.axes.empty() && item.axes[0].letter == '.';
    const int letters = static_cast<int>(item.axes.size()) - leading;
    const int leads = given.axes - letters;
    if (leads < 0 || (!leading && leads) || leads > max_axes + 3)
        return fail(why, item, std::to_string(given.axes) + " axes do not fit " + std::to_string(letters));
    if (leading) {
        if (sizes.leads >= 0 && sizes.leads != leads) return fail(why, item, "leading axes differ");
        for (int i = 0; i < leads; ++i) {
            if (sizes.leads >= 0 && sizes.lead[i] != given.shape[i])
                return fail(why, item, "leading axes differ");
            sizes.lead[i] = given.shape[i];
        }
        sizes.leads = leads;
    }
    for (int i = 0; i < letters; ++i) {
        const Axis axis = item.axes[i + leading];
        const int64_t size = given.shape[leads + i];
        if (axis.letter == 0 ? size != axis.plus
                             : !agree(sizes.size[static_cast<int>(axis.letter)], size - axis.plus))
            return fail(why, item, "sizes that share a letter differ");
    }
    out.data = given.data;
    out.dtype = given.dtype;
    out.axes = 0;
    if (leading) {
        int64_t stride = 0;
        if (!collapse(given, 0, leads, out.shape[0], stride))
            return fail(why, item, "not walked with one stride");
        if (stride % given.itemsize) return fail(why, item, "not aligned to its elements");
        out.stride[0] = stride / given.itemsize;
        if (letters == 0 && out.shape[0] > 1 && out.stride[0] != 1) return fail(why, item, "not dense");
        out.axes = 1;
    }
    for (int i = 0; i < letters; ++i) {
        const int from = leads + i;
        const int64_t bytes = given.stride_bytes[from];
        const bool single = given.shape[from] <= 1;
        if (bytes % given.itemsize && !single) return fail(why, item, "not aligned to its elements");
        if (i == letters - 1 && !single && bytes != given.itemsize)
            return fail(why, item, "last axis not dense");
        out.shape[out.axes] = given.shape[from];
        out.stride[out.axes++] = bytes / given.itemsize;
    }
    for (int i = out.axes - 1; i >= 0; --i)  // of an axis of one element any stride is true: the dense one
        if (out.shape[i] <= 1) out.stride[i] = i == out.axes - 1 ? 1 : out.stride[i + 1] * out.shape[i + 1];
    if (reinterpret_cast<uintptr_t>(given.data) % static_cast<unsigned>(given.itemsize))
        return fail(why, item, "not aligned to its elements");
    return true;
}

void bind_number(const Item& item, double value, Sizes& sizes) {
    if (item.size_of) sizes.size[static_cast<int>(item.size_of)] = static_cast<int64_t>(value);
}

bool result_shape(const Item& item, const Sizes& sizes, std::vector<int64_t>& shape) {
    shape.clear();
    for (const Axis& axis : item.axes) {
        if (axis.letter == '.') {
            shape.assign(sizes.lead, sizes.lead + (sizes.leads > 0 ? sizes.leads : 0));
            continue;
        }
        int64_t size = axis.letter == 0 ? 0 : sizes.size[static_cast<int>(axis.letter)];
        if (size < 0 && axis.letter == 'M') size = sizes.size['N'] * sizes.size['K'];
        if (size < 0 && axis.letter == 'N' && sizes.size['K'] > 0) size = sizes.size['M'] / sizes.size['K'];
        if (size < 0 && axis.letter == 'F' && sizes.size['C'] % 2 == 0) size = sizes.size['C'] / 2;
        if (size < 0 && axis.letter == 'C' && sizes.size['F'] >= 0) size = sizes.size['F'] * 2;
        if (size < 0) return false;
        shape.push_back(size + axis.plus);
    }
    return true;
}

DType dtype_of(Kind kind, DType same) {
    switch (kind) {
        case Kind::wide: return DType::f32;
        case Kind::half: return DType::bf16;
        case Kind::integer: return DType::i64;
        case Kind::boolean: return DType::boolean;
        case Kind::bytes: return DType::u8;
        default: return same;
    }
}

const char* dtype_name(DType dtype) {
    constexpr const char* names[] = {"another type", "float32", "bfloat16", "float64",
                                     "int32",        "int64",   "bool",     "uint8"};
    return names[static_cast<int>(dtype)];
}

int dtype_size(DType dtype) {
    constexpr int sizes[] = {0, 4, 2, 8, 4, 8, 1, 1};
    return sizes[static_cast<int>(dtype)];
}

}  // namespace nn
