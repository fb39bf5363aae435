// Tensor maps: their encoder, and the tensor copies that follow them (cp.async.bulk.tensor and its
// reductions).
//
// A box is moved row by row: a row runs along the innermost dimension, its bytes are contiguous in memory
// and, before swizzling, in the tile.  Elements outside the tensor are filled when loading and skipped when
// storing; the bytes of the whole box count on the mbarrier.
#include "tensor_map.h"

#include <cstring>

#include "in_flight.h"
#include "memory.h"
#include "reports.h"

namespace emu {

namespace {

// CU_TENSOR_MAP_DATA_TYPE_UINT8 to BFLOAT16 are numbered as Element; behind them come FLOAT32_FTZ, TFLOAT32
// and others.
constexpr int ELEMENT_TYPES = 10, TFLOAT32 = 11;
constexpr int NOT_SUPPORTED = 801;

// ---- encoding ---------------------------------------------------------------------------------------------

struct Refusal { int code; std::string why; };       // code 0: fine

Refusal invalid(std::string why) { return {CUDA_INVALID_VALUE, std::move(why)}; }
Refusal missing(std::string what) { return {NOT_SUPPORTED, std::move(what) + " is not emulated"}; }

bool is_float(int type) { return type == 6 || type == 7 || type == 8 || type == 9 || type == TFLOAT32; }

Element element_of(int type) { return type == TFLOAT32 ? Element::f32 : static_cast<Element>(type); }

Refusal check_modes(int type, uint32_t rank, int interleave, int swizzle, int fill) {
    if (rank < 1 || rank > 5) return invalid(format("rank %u: 1 to 5 are possible", rank));
    if (type < 0 || type > 15) return invalid(format("data type %d does not exist", type));
    if (type >= ELEMENT_TYPES && type != TFLOAT32)
        return missing(format("data type %d (flushing or packed)", type));
    if (interleave != 0) return missing(format("interleave %d", interleave));
    if (swizzle < 0 || swizzle > 6) return invalid(format("swizzle %d does not exist", swizzle));
    if (swizzle > 3) return missing(format("swizzle %d (chunks other than 16 bytes)", swizzle));
    if (fill == 1 && !is_float(type)) return invalid("NaN fill needs a floating-point type");
    if (fill < 0 || fill > 1) return invalid(format("fill %d does not exist", fill));
    return {0, ""};
}

Refusal check_tensor(uint64_t address, uint32_t rank, const uint64_t* sizes, const uint64_t* strides) {
    if (address % 16) return invalid("the global address must be a multiple of 16");
    for (uint32_t d = 0; d < rank; ++d)
        if (sizes[d] == 0 || sizes[d] > uint64_t(1) << 32)
            return invalid(format("the size of dimension %u must be 1 to 2^32", d));
    for (uint32_t d = 0; d + 1 < rank; ++d)
        if (strides[d] % 16 || strides[d] >= uint64_t(1) << 40)
            return invalid(
                format("the stride of dimension %u is %llu bytes; it must be a multiple of 16 below 2^40",
                       d + 1, static_cast<unsigned long long>(strides[d])));
    return {0, ""};
}

// Asked when a map is encoded and, as kernels may replace its fields, whenever one is used.
Refusal check_box(const TensorMap& m) {
    for (uint32_t d = 0; d < m.rank; ++d) {
        if (m.box[d] < 1 || m.box[d] > 256)
            return invalid(
                format("the box has %u elements along dimension %u; 1 to 256 are possible", m.box[d], d));
        if (m.steps[d] < 1 || m.steps[d] > 8)
            return invalid(format("the element stride of dimension %u must be 1 to 8", d));
    }
    const uint32_t row = m.box[0] * element_bytes(element_of(m.type));
    if (row % 16)
        return invalid(
            format("the innermost rows of the box have %u bytes; they must be a multiple of 16", row));
    if (m.fill_nan && !is_float(m.type)) return invalid("NaN fill needs a floating-point type");
    if (m.swizzle == 0) return {0, ""};
    const uint32_t span = 16u << m.swizzle;
    if (row > span)
        return invalid(
            format("the innermost rows of the box have %u bytes, more than the swizzle's %u", row, span));
    if (row < span) return missing(format("a swizzle of %u bytes over rows of only %u", span, row));
    return {0, ""};
}

uint16_t narrow(uint32_t value) { return static_cast<uint16_t>(std::min(value, 0xffffu)); }

TensorMap make_map(int type, uint32_t rank, uint64_t address, const uint64_t* sizes, const uint64_t* strides,
                   const uint32_t* box, const uint32_t* steps, int swizzle, int fill) {
    TensorMap m{};
    m.mark = TENSOR_MAP_MARK;
    m.address = address;
    m.rank = static_cast<uint8_t>(rank);
    m.type = static_cast<uint8_t>(type);
    m.swizzle = static_cast<uint8_t>(swizzle);
    m.fill_nan = static_cast<uint8_t>(fill);
    for (uint32_t d = 0; d < 5; ++d) {
        m.last[d] = d < rank ? static_cast<uint32_t>(sizes[d] - 1) : 0;
        m.box[d] = d < rank ? narrow(box[d]) : 1;
        m.steps[d] = d < rank ? static_cast<uint8_t>(std::min(steps[d], 255u)) : 1;
        if (d > 0) m.strides[d - 1] = d < rank ? strides[d - 1] : 0;
    }
    return m;
}

int refuse(const Refusal& refusal) {
    Report r;
    r.kind = refusal.code == NOT_SUPPORTED ? "unsupported" : "invalid_value";
    r.message = "cuTensorMapEncodeTiled: " + refusal.why;
    r.fix = "The requirements stand in the CUDA driver manual under cuTensorMapEncodeTiled.";
    r.in_kernel = false;
    report(r);
    return refusal.code;
}

}  // namespace

}  // namespace emu

extern "C" int tensor_map_encode_tiled(void* map, int type, uint32_t rank, void* address,
                                       const uint64_t* sizes, const uint64_t* strides, const uint32_t* box,
                                       const uint32_t* steps, int interleave, int swizzle, int, int fill) {
    using namespace emu;
    const uint64_t start = reinterpret_cast<uint64_t>(address);
    Refusal refusal = check_modes(type, rank, interleave, swizzle, fill);
    if (!refusal.code && (!map || !sizes || !box || !steps || (rank > 1 && !strides)))
        refusal = invalid("a null pointer");
    if (!refusal.code) refusal = check_tensor(start, rank, sizes, strides);
    if (refusal.code) return refuse(refusal);
    const TensorMap made = make_map(type, rank, start, sizes, strides, box, steps, swizzle, fill);
    refusal = check_box(made);
    if (refusal.code) return refuse(refusal);
    std::memcpy(map, &made, sizeof made);
    return 0;
}

namespace emu {

// ---- copying ----------------------------------------------------------------------------------------------

namespace {

TensorMap read_map(Thread& t, const char* address, uint32_t rank, uint32_t site) {
    TensorMap map;
    std::memcpy(&map, address, sizeof map);
    std::string what;
    if (map.mark != TENSOR_MAP_MARK) {
        what = "the tensor map holds nothing that cuTensorMapEncodeTiled wrote";
    } else if (map.rank != rank) {
        what = "the instruction names another number of dimensions than the tensor map";
    } else {
        what = check_box(map).why;
    }
    if (what.empty()) return map;
    report(finding(t, "async", site, what,
                   "Encode the map on the host and pass it as a const __grid_constant__ CUtensorMap "
                   "parameter, by its address."));
    abandon(t, CUDA_LAUNCH_FAILURE);
}

// What NaN fill writes: 16 bytes of the type's NaN.
const char* nan_fill(Element element) {
    static const uint16_t f16[8] = {0x7fff, 0x7fff, 0x7fff, 0x7fff,
                                    0x7fff, 0x7fff, 0x7fff, 0x7fff};  // also bf16's
    static const uint32_t f32[4] = {0x7fffffff, 0x7fffffff, 0x7fffffff, 0x7fffffff};
    static const uint64_t f64[2] = {0x7fffffffffffffff, 0x7fffffffffffffff};
    if (element == Element::f64) return reinterpret_cast<const char*>(f64);
    return reinterpret_cast<const char*>(element == Element::f32 ? static_cast<const void*>(f32) : f16);
}

// Adds the runs of one row: `outside` before the tensor begins, `inside`, `outside` again.
// `row` points to its element 0; null: the whole row is outside.
void add_row(BulkOperation& o, const TensorMap& map, int64_t x, char* row) {
    const int64_t size = int64_t(map.last[0]) + 1, width = map.box[0],
                  bytes = element_bytes(element_of(map.type));
    const int64_t begin = row ? std::min(std::max<int64_t>(-x, 0), width) : width;
    const int64_t end = row ? std::max(begin, std::min(width, size - x)) : width;
    const auto add = [&](int64_t from, int64_t to, char* other) {
        if (from >= to) return;
        o.runs.push_back({o.tile_bytes + static_cast<uint32_t>(from * bytes),
                          static_cast<uint32_t>((to - from) * bytes), other});
    };
    add(0, begin, nullptr);
    if (begin < end) add(begin, end, row + (x + begin) * bytes);
    add(end, width, nullptr);
    o.tile_bytes += static_cast<uint32_t>(width * bytes);
}

// All rows of the box at `at`, outermost dimension slowest.
void add_box(BulkOperation& o, const TensorMap& map, const Coordinates& at) {
    uint32_t counts[5], index[5] = {};
    for (uint32_t d = 1; d < 5; ++d) counts[d] = (map.box[d] + map.steps[d] - 1u) / map.steps[d];
    for (;;) {
        char* row = reinterpret_cast<char*>(map.address);
        bool inside = true;
        for (uint32_t d = 1; d < 5; ++d) {
            const int64_t place = int64_t(at.at[d]) + int64_t(index[d]) * map.steps[d];
            inside = inside && place >= 0 && place <= map.last[d];
            row += place * static_cast<int64_t>(map.strides[d - 1]);
        }
        add_row(o, map, at.at[0], inside ? row : nullptr);
        uint32_t d = 1;
        while (d < 5 && ++index[d] == counts[d]) index[d++] = 0;
        if (d == 5) return;
    }
}

BulkPointer box_copy(Thread& t, const TensorMap& map, const Coordinates& at, char* tile, bool to_tile,
                     uint32_t site) {
    require_aligned(t, tile, 128, "the shared memory side of a tensor copy", site);
    auto operation = std::make_unique<BulkOperation>();
    operation->issuer = &t;
    operation->site = site;
    operation->to_tile = to_tile;
    operation->tile = tile;
    operation->tile_bytes = 0;
    operation->swizzle = static_cast<Swizzle>(map.swizzle);
    operation->element = element_of(map.type);
    operation->rounds_to_tf32 = to_tile && map.type == TFLOAT32;
    if (map.fill_nan) operation->fill = nan_fill(operation->element);
    add_box(*operation, map, at);
    return operation;
}

// What a store through such a map does to the bits is not documented.
void refuse_tf32(Thread& t, const TensorMap& map, uint32_t site) {
    if (map.type != TFLOAT32) return;
    report(finding(t, "async", site, "a store through a tensor map of tf32, which is not emulated",
                   "Store through a map of float32."));
    abandon(t, CUDA_LAUNCH_FAILURE);
}

bool reducible(Reduce how, Element e) {
    switch (how) {
        case Reduce::add: return element_bytes(e) >= 2 && e != Element::u16;
        case Reduce::min:
        case Reduce::max:
            return element_bytes(e) >= 2 && e != Element::u16 && e != Element::f32 && e != Element::f64;
        case Reduce::inc: case Reduce::dec: return e == Element::u32;
        default: return e == Element::u32 || e == Element::s32 || e == Element::u64 || e == Element::s64;
    }
}

}  // namespace

void tensor_load(Thread& t, char* destination, const char* map_address, uint32_t rank, Coordinates at,
                 char* barrier, uint32_t blocks, uint32_t site) {
    const TensorMap map = read_map(t, map_address, rank, site);
    for (const uint32_t block : receivers(t, destination, blocks, site)) {
        BulkPointer operation = box_copy(t, map, at, in_block(t, destination, block), true, site);
        operation->barrier = blocks == NO_MULTICAST ? barrier : in_block(t, barrier, block);
        watch_barrier(t, operation->barrier, site);
        issue(std::move(operation));
    }
}

void tensor_store(Thread& t, const char* map_address, uint32_t rank, Coordinates at, const char* source,
                  uint32_t site) {
    const TensorMap map = read_map(t, map_address, rank, site);
    refuse_tf32(t, map, site);
    issue(box_copy(t, map, at, const_cast<char*>(source), false, site));
}

void tensor_reduce(Thread& t, const char* map_address, uint32_t rank, Coordinates at, const char* source,
                   Reduce how, uint32_t site) {
    const TensorMap map = read_map(t, map_address, rank, site);
    refuse_tf32(t, map, site);
    BulkPointer operation = box_copy(t, map, at, const_cast<char*>(source), false, site);
    if (!reducible(how, operation->element)) {
        report(finding(t, "async", site, "the tensor map's element type has no such reduction",
                       "Reduce with an operation that the type has."));
        abandon(t, CUDA_LAUNCH_FAILURE);
    }
    operation->reduces = true;
    operation->operation = how;
    issue(std::move(operation));
}

void tensor_prefetch(Thread& t, const char* map_address, uint32_t rank, uint32_t site) {
    read_map(t, map_address, rank, site);
}

// ---- changing a map on the device -------------------------------------------------------------------------

namespace {

[[noreturn]] void refuse_field(Thread& t, uint32_t site, const std::string& why) {
    report(finding(t, "async", site, "tensormap.replace: " + why,
                   "The values stand in the PTX manual under tensormap.replace."));
    abandon(t, CUDA_LAUNCH_FAILURE);
}

// tensormap.replace numbers the types in its own way: f32.ftz stands before f64 and bf16.
int element_of_code(uint64_t code) {
    static const int elements[] = {0, 1, 2, 3, 4, 5, 6, 7, -1, 8, 9};
    return code < sizeof elements / sizeof *elements ? elements[code] : -1;
}

void replace_mode(Thread& t, TensorMap& m, MapField field, uint64_t value, uint32_t site) {
    const uint64_t limit = field == MapField::swizzle_mode ? 4 : field == MapField::fill_mode ? 2 : 1;
    if (value >= limit)
        refuse_field(
            t, site,
            format("mode %llu of this field is not emulated", static_cast<unsigned long long>(value)));
    if (field == MapField::swizzle_mode) m.swizzle = static_cast<uint8_t>(value);
    else if (field == MapField::fill_mode) m.fill_nan = static_cast<uint8_t>(value);
    else if (field == MapField::interleave_layout) m.interleave = 0;
    else m.atomicity = 0;
}

void replace_field(Thread& t, TensorMap& m, MapField field, uint32_t d, uint64_t value, uint32_t site) {
    if (d >= (field == MapField::global_stride ? 4u : 5u))
        refuse_field(t, site, format("ordinal %u does not exist", d));
    switch (field) {
        case MapField::global_address: m.address = value; return;
        case MapField::rank:
            if (value > 4) refuse_field(t, site, "the rank, less one, must be 0 to 4");
            m.rank = static_cast<uint8_t>(value + 1);
            return;
        case MapField::box_dim: m.box[d] = narrow(static_cast<uint32_t>(value)); return;
        case MapField::global_dim: m.last[d] = static_cast<uint32_t>(value - 1); return;
        case MapField::global_stride: m.strides[d] = value; return;
        case MapField::element_stride: m.steps[d] = static_cast<uint8_t>(value); return;
        case MapField::elemtype:
            if (element_of_code(value) < 0)
                refuse_field(t, site, format("element type %d is not emulated", static_cast<int>(value)));
            m.type = static_cast<uint8_t>(element_of_code(value));
            return;
        default: replace_mode(t, m, field, value, site);
    }
}

}  // namespace

void tensor_map_replace(Thread& t, char* map, MapField field, uint32_t ordinal, uint64_t value,
                        uint32_t site) {
    watch(t, map, sizeof(TensorMap), READ, site);
    watch(t, map, sizeof(TensorMap), WRITE, site);
    TensorMap m;
    std::memcpy(&m, map, sizeof m);
    if (m.mark != TENSOR_MAP_MARK) refuse_field(t, site, "there is no tensor map at this address");
    replace_field(t, m, field, ordinal, value, site);
    std::memcpy(map, &m, sizeof m);
}

void tensor_map_copy(Thread& t, char* destination, const char* source, uint32_t site) {
    watch(t, source, sizeof(TensorMap), READ | SHARED, site);
    watch(t, destination, sizeof(TensorMap), WRITE | GLOBAL, site);
    std::memcpy(destination, source, sizeof(TensorMap));
    memory_fence(t, Fence::proxy_tensormap, site);
}

}  // namespace emu
