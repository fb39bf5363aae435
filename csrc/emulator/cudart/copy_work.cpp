// Copies and fills (work.h): their checks, and what they do.
#include <cstring>

#include "../checker.h"
#include "../memory.h"
#include "../options.h"
#include "../reports.h"
#include "call.h"
#include "statistics.h"
#include "work.h"

namespace emu::cudart {
namespace {

// Bytes from the first to the last.
size_t span(size_t width, size_t height, size_t depth, size_t pitch, size_t slice) {
    return (depth - 1) * slice + (height - 1) * pitch + width;
}

void announce_written(const void* p, size_t bytes) {
    if (options().check || options().count) checker_written(p, bytes);
}

bool to_device(cudaMemcpyKind kind) {
    return kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
}
bool from_device(cudaMemcpyKind kind) {
    return kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
}

cudaMemcpyKind direction(const void* destination, const void* source) {
    if (is_device_only(destination))
        return is_device_only(source) ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice;
    return is_device_only(source) ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost;
}

cudaError_t check_side(bool device, const void* p, size_t bytes, const char* verb) {
    return device ? check_device_range(p, bytes, verb) : check_host_range(p, bytes, verb);
}

}  // namespace

// ---- copies -----------------------------------------------------------------------------------------------

CopyWork linear_copy(void* destination, const void* source, size_t bytes, cudaMemcpyKind kind) {
    return pitched_copy(destination, bytes, source, bytes, bytes, 1, kind);
}

CopyWork pitched_copy(void* destination, size_t destination_pitch, const void* source, size_t source_pitch,
                      size_t width, size_t height, cudaMemcpyKind kind) {
    CopyWork copy;
    copy.destination = static_cast<char*>(destination);
    copy.source = static_cast<const char*>(source);
    copy.destination_pitch = destination_pitch;
    copy.source_pitch = source_pitch;
    copy.width = width;
    copy.height = height;
    copy.kind = kind;
    return copy;
}

cudaError_t volume_copy(const cudaMemcpy3DParms& p, CopyWork* copy) {
    if (p.srcArray || p.dstArray) return unsupported("copying to or from a cudaArray");
    copy->destination_pitch = p.dstPtr.pitch;
    copy->source_pitch = p.srcPtr.pitch;
    copy->destination_slice = p.dstPtr.pitch * p.dstPtr.ysize;
    copy->source_slice = p.srcPtr.pitch * p.srcPtr.ysize;
    copy->destination = static_cast<char*>(p.dstPtr.ptr) + p.dstPos.z * copy->destination_slice +
                        p.dstPos.y * p.dstPtr.pitch + p.dstPos.x;
    copy->source = static_cast<const char*>(p.srcPtr.ptr) + p.srcPos.z * copy->source_slice +
                   p.srcPos.y * p.srcPtr.pitch + p.srcPos.x;
    copy->width = p.extent.width;
    copy->height = p.extent.height;
    copy->depth = p.extent.depth;
    copy->kind = p.kind;
    return cudaSuccess;
}

cudaError_t CopyWork::check() {
    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault)
        return reject(cudaErrorInvalidMemcpyDirection, "invalid_call",
                      format("%d is no cudaMemcpyKind", static_cast<int>(kind)),
                      "Use one of the enumerators.");
    if (empty()) return cudaSuccess;
    bool rows = height > 1 || depth > 1;
    if (rows && (destination_pitch < width || source_pitch < width))
        return reject(cudaErrorInvalidPitchValue, "invalid_call",
                      format("rows of %zu bytes at pitches of %zu (destination) and %zu (source) bytes",
                             width, destination_pitch, source_pitch),
                      "The width, in bytes, must not be more than either pitch.");
    if (kind == cudaMemcpyDefault) kind = direction(destination, source);
    size_t writes = span(width, height, depth, destination_pitch, destination_slice);
    size_t reads = span(width, height, depth, source_pitch, source_slice);
    if (cudaError_t error = check_side(to_device(kind), destination, writes, "writes")) return error;
    return check_side(from_device(kind), source, reads, "reads");
}

std::string CopyWork::describe() const {
    return format("a copy of %zu bytes from %s to %s", bytes(), describe_memory(source).c_str(),
                  describe_memory(destination).c_str());
}

std::vector<Range> CopyWork::ranges() const {
    if (empty()) return {};
    std::vector<Range> touched{
        {destination, span(width, height, depth, destination_pitch, destination_slice), true, true}};
    if (!staged_)
        touched.push_back({source, span(width, height, depth, source_pitch, source_slice), false, true});
    return touched;
}

void CopyWork::stage() {
    if (empty() || from_device(kind)) return;
    if (memory_find(source)) {
        watch_source_ = true;
        source_sum_ = checksum();
        return;
    }
    auto bytes_read =
        std::make_shared<std::vector<char>>(span(width, height, depth, source_pitch, source_slice));
    std::memcpy(bytes_read->data(), source, bytes_read->size());
    staged_ = std::move(bytes_read);
    source = staged_->data();
}

uint64_t CopyWork::checksum() const {
    uint64_t sum = 14695981039346656037u;
    size_t length = span(width, height, depth, source_pitch, source_slice);
    for (size_t i = 0; i < length; ++i) sum = (sum ^ static_cast<unsigned char>(source[i])) * 1099511628211u;
    return sum;
}

void CopyWork::transfer() const {
    for (size_t z = 0; z < depth; ++z)
        for (size_t y = 0; y < height; ++y) {
            char* to = destination + z * destination_slice + y * destination_pitch;
            std::memmove(to, source + z * source_slice + y * source_pitch, width);
            if (to_device(kind) || is_device_accessible(to)) announce_written(to, width);
        }
}

void CopyWork::count() const {
    Statistics& s = statistics();
    ++s.copies;
    if (kind == cudaMemcpyHostToDevice) s.bytes_to_device += bytes();
    if (kind == cudaMemcpyDeviceToHost) s.bytes_to_host += bytes();
    if (kind == cudaMemcpyDeviceToDevice) s.bytes_on_device += bytes();
}

cudaError_t CopyWork::run() {
    if (empty()) return cudaSuccess;
    if (watch_source_ && checksum() != source_sum_)
        report_call("unsynchronized", "host memory changed while " + describe() + " was still queued",
                    "Synchronise with the stream before writing to the buffer again.");
    watch_source_ = false;
    transfer();
    count();
    return cudaSuccess;
}

// ---- fills ------------------------------------------------------------------------------------------------

cudaError_t FillWork::check() {
    if (empty()) return cudaSuccess;
    if ((height > 1 || depth > 1) && pitch < width)
        return reject(cudaErrorInvalidValue, "invalid_call",
                      format("rows of %zu bytes at a pitch of %zu bytes", width, pitch),
                      "The width, in bytes, must not be more than the pitch.");
    bool aligned = reinterpret_cast<uintptr_t>(destination) % element == 0 && width % element == 0;
    if ((element != 1 && element != 2 && element != 4) || !aligned) return cudaErrorInvalidValue;
    return check_device_range(destination, span(width, height, depth, pitch, slice), "writes");
}

std::string FillWork::describe() const {
    return format("a memset of %zu bytes of %s", width * height * depth,
                  describe_memory(destination).c_str());
}

std::vector<Range> FillWork::ranges() const {
    if (empty()) return {};
    return {{destination, span(width, height, depth, pitch, slice), true, true}};
}

cudaError_t FillWork::run() {
    for (size_t z = 0; z < depth; ++z)
        for (size_t y = 0; y < height; ++y) {
            char* row = destination + z * slice + y * pitch;
            if (element == 1) std::memset(row, static_cast<int>(value & 0xff), width);
            else
                for (size_t x = 0; x < width; x += element)
                    std::memcpy(row + x, &value, element);     // little endian
            announce_written(row, width);
        }
    ++statistics().fills;
    statistics().bytes_filled += width * height * depth;
    return cudaSuccess;
}

}  // namespace emu::cudart
