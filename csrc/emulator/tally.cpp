// Sums, and the set of bytes that a launch touched (tally.h).
#include "tally.h"

#include "reports.h"

namespace emu {

namespace {

using ull = unsigned long long;

const char* const FLOP_NAMES[FLOP_KINDS] = {"none",      "f16",         "bf16",        "f32",
                                            "f64",       "tensor_f16",  "tensor_bf16", "tensor_tf32",
                                            "tensor_f8", "tensor_int8", "tensor_f64"};

std::string flops_json(const std::array<uint64_t, FLOP_KINDS>& flops) {
    std::string text = "{";
    uint64_t total = 0;
    for (uint32_t kind = 1; kind < FLOP_KINDS; ++kind) {
        total += flops[kind];
        if (flops[kind]) text += format("\"%s\": %llu, ", FLOP_NAMES[kind], static_cast<ull>(flops[kind]));
    }
    return text + format("\"total\": %llu}", static_cast<ull>(total));
}

std::string mix_json(const std::map<std::string, uint64_t>& mix) {
    std::string text = "{";
    for (const auto& [name, count] : mix)
        text += format("%s\"%s\": %llu", text.size() > 1 ? ", " : "", name.c_str(), static_cast<ull>(count));
    return text + "}";
}

}    // namespace

void MemoryTally::add(const MemoryTally& o) {
    requests += o.requests, sectors += o.sectors, ideal_sectors += o.ideal_sectors;
    shared_requests += o.shared_requests, bank_wavefronts += o.bank_wavefronts,
        ideal_wavefronts += o.ideal_wavefronts;
    bytes_read += o.bytes_read, bytes_written += o.bytes_written;
    distinct_bytes_read += o.distinct_bytes_read, distinct_bytes_written += o.distinct_bytes_written;
    atomics += o.atomics;
}

void Tally::add(const Tally& o) {
    memory.add(o.memory);
    for (uint32_t kind = 0; kind < FLOP_KINDS; ++kind) flops[kind] += o.flops[kind];
    instructions += o.instructions, barriers += o.barriers, collectives += o.collectives;
    for (const auto& [name, count] : o.mix) mix[name] += count;
}

std::string Tally::json_fields() const {
    const MemoryTally& m = memory;
    std::string text;
    const auto field = [&](const char* name, uint64_t value) {
        text += format("\"%s\": %llu, ", name, static_cast<ull>(value));
    };
    field("requests", m.requests), field("sectors", m.sectors), field("ideal_sectors", m.ideal_sectors);
    field("shared_requests", m.shared_requests), field("bank_wavefronts", m.bank_wavefronts);
    field("ideal_wavefronts", m.ideal_wavefronts), field("bytes_read", m.bytes_read),
        field("bytes_written", m.bytes_written);
    field("distinct_bytes_read", m.distinct_bytes_read),
        field("distinct_bytes_written", m.distinct_bytes_written);
    field("atomics", m.atomics), field("instructions", instructions), field("barriers", barriers),
        field("collectives", collectives);
    return text + "\"flops\": " + flops_json(flops) + ", \"mix\": " + mix_json(mix);
}

// ---- distinct bytes ---------------------------------------------------------------------------------------

DistinctBytes::Slot& DistinctBytes::find(uint64_t key) {
    size_t at = (key * 0x9e3779b97f4a7c15ull >> 20) & (slots_.size() - 1);
    while (slots_[at].key && slots_[at].key != key) at = (at + 1) & (slots_.size() - 1);
    return slots_[at];
}

void DistinctBytes::grow() {
    std::vector<Slot> old(slots_.empty() ? 4096 : slots_.size() * 2);
    old.swap(slots_);
    for (const Slot& s : old)
        if (s.key) find(s.key) = s;
}

void DistinctBytes::add(uint32_t group, uint64_t sector, uint32_t bytes, bool write) {
    if (used_ * 2 >= slots_.size()) grow();
    const uint64_t key =
        static_cast<uint64_t>(group + 1) << SECTOR_BITS | (sector & ((1ull << SECTOR_BITS) - 1));
    Slot& slot = find(key);
    used_ += slot.key == 0;
    slot.key = key;
    (write ? slot.written : slot.read) |= bytes;
}

void DistinctBytes::clear() {
    if (slots_.size() > 1 << 16) std::vector<Slot>().swap(slots_);
    else slots_.assign(slots_.size(), Slot{});
    used_ = 0;
}

std::string json_text(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\', out += c;
        else if (c == '\n') out += "\\n";
        else if (static_cast<unsigned char>(c) < 0x20) out += format("\\u%04x", c);
        else out += c;
    }
    return out + "\"";
}

}    // namespace emu
