// Streams and events.
//
// Work runs when it is submitted, unless Options::defer is set: then it waits in its stream until a call
// synchronises with it, so that a program that forgot to synchronise sees the old bytes, and one that frees
// too early is told.  What a stream must wait for follows from sequence numbers: the legacy default stream
// waits for all earlier work of blocking streams and they for its; an event waits for its record.
// Dependencies always point to smaller numbers, so running them recurses to an end.
#pragma once
#include <cuda_runtime_api.h>

#include <deque>
#include <memory>
#include <vector>

#include "../options.h"
#include "call.h"
#include "work.h"

namespace emu::cudart {

struct Capture;
struct Node;

struct Stream {
    uint64_t id = 0;
    unsigned flags = cudaStreamDefault;
    int priority = 0;
    bool legacy = false;
    std::deque<std::unique_ptr<Work>> queue;         // deferred, by rising sequence
    std::shared_ptr<Capture> capture;                // null: not capturing
    std::vector<Node*> frontier;                     // nodes that the next captured one depends on

    bool blocking() const { return !legacy && !(flags & cudaStreamNonBlocking); }
};

struct EventState {     // shared with queued records and waits: events may be destroyed early
    Stream* stream = nullptr;                        // of the last record
    uint64_t sequence = 0;                           // of that record
    bool recorded = false, complete = true;
    double milliseconds = 0;                         // when it ran, on a monotonic clock
    std::shared_ptr<Capture> capture;                // recorded in a stream that captures
    std::vector<Node*> nodes;
};

struct Event {
    unsigned flags = cudaEventDefault;
    std::shared_ptr<EventState> state = std::make_shared<EventState>();
};

struct EventRecordWork : WorkOf<EventRecordWork> {
    cudaEvent_t event = nullptr;
    std::shared_ptr<EventState> state;               // null in a graph: the event's at the time it runs
    cudaError_t run() override;
    cudaGraphNodeType type() const override { return cudaGraphNodeTypeEventRecord; }
    std::string describe() const override { return "an event record"; }
};

struct EventWaitWork : WorkOf<EventWaitWork> {
    cudaEvent_t event = nullptr;
    std::shared_ptr<EventState> state;
    cudaError_t run() override;
    cudaGraphNodeType type() const override { return cudaGraphNodeTypeWaitEvent; }
    std::string describe() const override { return "a wait for an event"; }
};

// The stream of a handle, the default ones included; null for a handle that is none (reported).
Stream* find_stream(cudaStream_t);
Event* find_event(cudaEvent_t);
const std::vector<Stream*>& all_streams();
Stream* create_stream(unsigned flags, int priority);
void destroy_stream(Stream*);                        // its work runs first

// Everything of `stream` up to a sequence number, and what that depends on.
void run_until(Stream& stream, uint64_t sequence);
void run_all();                                      // every stream, in the order Options::schedule says
bool run_one(Stream& stream);                        // polling makes progress; false: nothing was queued
bool anything_queued();
void order_after(Stream& stream);                    // runs what the stream's next operation comes after
void drop_all();                                     // cudaDeviceReset

// A fault of the kernel becomes the device's error, as it would arrive later on a GPU; other errors are the
// call's.
cudaError_t run_now(Work&);
cudaError_t run_blocking(Stream& stream, Work&);     // a synchronous copy or fill
void enqueue(Stream& stream, std::unique_ptr<Work>);

// Deferred work that still uses memory about to be freed is reported, then run.
void settle_before_free(const void* begin, size_t bytes);
void report_unfinished();                            // at exit: work that nothing waited for

// ---- capture (capture.cpp) --------------------------------------------------------------------------------

cudaError_t capture_work(Stream&, std::unique_ptr<Work>);            // appends a node after the frontier
cudaError_t refuse_if_capturing(
    Stream&);     // synchronising or querying a capturing stream invalidates the capture
cudaError_t refuse_implicit(Stream&);                // the legacy stream while a blocking stream captures
cudaError_t refuse_unsafe();     // cudaMalloc and the like while this thread, or any, captures

cudaError_t capture_isolation(
    Stream&);     // a capturing stream waits for an event recorded outside of its capture
cudaError_t join_capture(Stream&, const EventState&);     // a stream waits for an event recorded in a capture
cudaError_t invalidate(Capture&, cudaError_t);       // returns the code
void abandon_capture(Stream&);                       // the stream is destroyed while it captures

template <class W> cudaError_t submit(Stream& stream, W work) {
    if (stream.capture) {
        work.keep();
        return capture_work(stream, std::make_unique<W>(std::move(work)));
    }
    if (cudaError_t error = refuse_implicit(stream)) return error;
    if (!options().defer) {
        if (anything_queued()) order_after(stream);
        return run_now(work);
    }
    work.keep();
    work.stage();
    enqueue(stream, std::make_unique<W>(std::move(work)));
    return cudaSuccess;
}

template <class W> cudaError_t submit(cudaStream_t handle, W work) {
    Stream* stream = find_stream(handle);
    return stream ? submit(*stream, std::move(work)) : cudaErrorInvalidResourceHandle;
}

}  // namespace emu::cudart
