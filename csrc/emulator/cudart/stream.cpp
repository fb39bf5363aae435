// stream.h: the queues and the order in which they run.
#include "stream.h"

#include <algorithm>
#include <unordered_set>

#include "../options.h"
#include "../reports.h"

namespace emu::cudart {
namespace {

struct Streams {
    std::vector<Stream*> all;     // in order of creation; the first is the legacy default stream
    std::unordered_set<const void*> known;
    uint64_t next_id = 1, next_sequence = 1;
    size_t queued = 0;                               // operations in all queues
    uint64_t random = 0;

    Streams() { add(cudaStreamDefault, 0)->legacy = true; }
    Stream* add(unsigned flags, int priority) {
        auto* stream = new Stream;
        stream->id = next_id++;
        stream->flags = flags;
        stream->priority = priority;
        all.push_back(stream);
        known.insert(stream);
        return stream;
    }
    Stream& legacy() { return *all.front(); }
};

Streams& streams() {     // never destroyed: programs destroy theirs while they end
    static auto* instance = new Streams;
    return *instance;
}

Stream& per_thread_stream() {
    thread_local Stream* own = streams().add(cudaStreamDefault, 0);
    return *own;
}

// ---- running ----------------------------------------------------------------------------------------------

void run_dependencies(Stream& stream, uint64_t sequence) {
    Streams& s = streams();
    if (stream.blocking()) run_until(s.legacy(), sequence);
    if (!stream.legacy) return;
    for (size_t i = 1; i < s.all.size(); ++i)        // by index: a host function may create streams
        if (s.all[i]->blocking()) run_until(*s.all[i], sequence);
}

void run_front(Stream& stream) {
    std::unique_ptr<Work> work = std::move(stream.queue.front());
    stream.queue.pop_front();
    --streams().queued;
    run_dependencies(stream, work->sequence);
    if (device_error() == cudaSuccess) remember(run_now(*work));
}

uint64_t draw() {                                    // xorshift; the seed gives the first state
    uint64_t& state = streams().random;
    if (!state) state = options().seed * 0x9e3779b97f4a7c15u | 1;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

// Any queue's front may run next: what it depends on runs with it.
Stream* next_to_run() {
    std::vector<Stream*> ready;
    for (Stream* stream : streams().all)
        if (!stream->queue.empty()) ready.push_back(stream);
    if (ready.empty()) return nullptr;
    auto earlier = [](Stream* a, Stream* b) {
        return a->queue.front()->sequence < b->queue.front()->sequence;
    };
    switch (options().schedule) {
        case Schedule::reverse: return *std::max_element(ready.begin(), ready.end(), earlier);
        case Schedule::random: return ready[draw() % ready.size()];
        default: return *std::min_element(ready.begin(), ready.end(), earlier);
    }
}

// ---- missing synchronisation ------------------------------------------------------------------------------

bool overlap(const Range& a, const Range& b) {
    return a.begin < b.begin + b.bytes && b.begin < a.begin + a.bytes;
}

std::string stream_name(const Stream& stream) {
    return stream.legacy ? "the default stream"
                         : format("stream %llu", static_cast<unsigned long long>(stream.id));
}

template <class Visit> void for_each_queued(Visit visit) {
    for (Stream* stream : streams().all)
        for (const auto& work : stream->queue) visit(*stream, *work);
}

void report_unordered(const Work& now) {
    std::vector<Range> mine = now.ranges();
    for_each_queued([&](Stream& stream, Work& queued) {
        for (const Range& theirs : queued.ranges())
            for (const Range& range : mine)
                if (theirs.exact && (theirs.written || range.written) && overlap(theirs, range))
                    report_call("unsynchronized",
                                now.describe() + " does not wait for " + queued.describe() + " in " +
                                    stream_name(stream) + ", which uses the same memory",
                                "Synchronise with that stream first (cudaStreamSynchronize, or an event).");
    });
}

}  // namespace

// ---- handles ----------------------------------------------------------------------------------------------

Stream* find_stream(cudaStream_t handle) {
    if (!handle) return PerThreadScope::active() ? &per_thread_stream() : &streams().legacy();
    if (handle == cudaStreamLegacy) return &streams().legacy();
    if (handle == cudaStreamPerThread) return &per_thread_stream();
    if (streams().known.count(handle)) return reinterpret_cast<Stream*>(handle);
    report_call("invalid_call", "was given a stream that does not exist (never created, or destroyed)",
                "Create the stream first and destroy it after its last use.");
    return nullptr;
}

const std::vector<Stream*>& all_streams() { return streams().all; }

Stream* create_stream(unsigned flags, int priority) { return streams().add(flags, priority); }

void destroy_stream(Stream* stream) {
    run_until(*stream, UINT64_MAX);
    Streams& s = streams();
    s.known.erase(stream);
    s.all.erase(std::find(s.all.begin(), s.all.end(), stream));
    delete stream;
}

// ---- running ----------------------------------------------------------------------------------------------

void run_until(Stream& stream, uint64_t sequence) {
    while (!stream.queue.empty() && stream.queue.front()->sequence <= sequence) run_front(stream);
}

void run_all() {
    while (Stream* stream = next_to_run()) run_front(*stream);
}

bool run_one(Stream& stream) {
    if (stream.queue.empty()) return false;
    run_front(stream);
    return true;
}

bool anything_queued() { return streams().queued != 0; }

void order_after(Stream& stream) {
    run_until(stream, UINT64_MAX);
    run_dependencies(stream, UINT64_MAX);
}

void drop_all() {
    for (Stream* stream : streams().all) {
        stream->queue.clear();
        stream->capture.reset();
        stream->frontier.clear();
    }
    streams().queued = 0;
}

cudaError_t run_now(Work& work) {
    cudaError_t error = work.run();
    if (!is_sticky(error)) return error;
    set_device_error(error);
    return cudaSuccess;
}

cudaError_t run_blocking(Stream& stream, Work& work) {
    if (stream.capture) return refuse_if_capturing(stream);
    if (cudaError_t error = refuse_implicit(stream)) return error;
    if (anything_queued()) {
        order_after(stream);
        if (cudaError_t lost = device_error()) return lost;
        if (anything_queued()) report_unordered(work);
    }
    return run_now(work);
}

void enqueue(Stream& stream, std::unique_ptr<Work> work) {
    Streams& s = streams();
    work->sequence = s.next_sequence++;
    stream.queue.push_back(std::move(work));
    ++s.queued;
}

void settle_before_free(const void* begin, size_t bytes) {
    if (!anything_queued()) return;
    Range freed{static_cast<const char*>(begin), bytes, true, true};
    bool used = false;
    for_each_queued([&](Stream& stream, Work& queued) {
        for (const Range& theirs : queued.ranges()) {
            if (!overlap(theirs, freed)) continue;
            report_call("unsynchronized",
                        "frees " + describe_memory(begin) + " while " + queued.describe() + " in " +
                            stream_name(stream) + " still uses it",
                        "Wait for the stream before freeing, or free with cudaFreeAsync in that stream.");
            used = true;
            return;
        }
    });
    if (used) run_all();
}

void report_unfinished() {
    for_each_queued([](Stream& stream, Work& queued) {
        bool event =
            queued.type() == cudaGraphNodeTypeEventRecord || queued.type() == cudaGraphNodeTypeWaitEvent;
        if (!event && queued.type() != cudaGraphNodeTypeMemFree)
            report_call("unsynchronized",
                        "the program ended before " + queued.describe() + " in " + stream_name(stream) +
                            " had run: nothing waits for it",
                        "Synchronise before the program ends (cudaDeviceSynchronize).");
    });
}

}  // namespace emu::cudart
