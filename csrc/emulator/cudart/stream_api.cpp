// Entry points for streams and events.
#include <chrono>
#include <unordered_set>

#include "../options.h"
#include "statistics.h"
#include "stream.h"

namespace emu::cudart {
namespace {

constexpr int LEAST_PRIORITY = 0, GREATEST_PRIORITY = -5;

std::unordered_set<const void*>& events() {
    static auto* known = new std::unordered_set<const void*>;
    return *known;
}

double now() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

cudaError_t create(cudaStream_t* out, unsigned flags, int priority) {
    if (!out || flags > cudaStreamNonBlocking) return cudaErrorInvalidValue;
    priority = priority < GREATEST_PRIORITY ? GREATEST_PRIORITY
               : priority > LEAST_PRIORITY  ? LEAST_PRIORITY
                                            : priority;
    *out = reinterpret_cast<cudaStream_t>(create_stream(flags, priority));
    return cudaSuccess;
}

template <class Body> cudaError_t with_stream(const char* name, cudaStream_t handle, Body&& body) {
    return call(name, [&]() -> cudaError_t {
        Stream* stream = find_stream(handle);
        return stream ? body(*stream) : cudaErrorInvalidResourceHandle;
    });
}

template <class Body> cudaError_t with_event(const char* name, cudaEvent_t handle, Body&& body) {
    return call(name, [&]() -> cudaError_t {
        Event* event = find_event(handle);
        return event ? body(*event) : cudaErrorInvalidResourceHandle;
    });
}

cudaError_t record(Event& event, cudaEvent_t handle, Stream& stream, unsigned flags) {
    EventRecordWork work;
    work.event = handle;     // a node of a graph records whatever the event is by then
    if (stream.capture && flags != cudaEventRecordExternal) {     // no node: it marks a place in the graph
        auto marked = std::make_shared<EventState>();
        marked->capture = stream.capture;
        marked->nodes = stream.frontier;
        marked->recorded = true;
        event.state = std::move(marked);
        return cudaSuccess;
    }
    if (!stream.capture) {                           // waits asked for earlier keep the earlier record
        event.state = std::make_shared<EventState>();
        event.state->recorded = true;
        event.state->complete = false;
        event.state->stream = &stream;
        work.state = event.state;
    }
    cudaError_t error = submit(stream, work);
    if (!stream.queue.empty()) event.state->sequence = stream.queue.back()->sequence;
    return error;
}

cudaError_t wait(Event& event, cudaEvent_t handle, Stream& stream, unsigned flags) {
    const EventState& state = *event.state;
    if (state.capture) return join_capture(stream, state);
    if (stream.capture && flags != cudaEventWaitExternal) return capture_isolation(stream);
    if (!stream.capture && (!state.recorded || state.complete)) return cudaSuccess;
    EventWaitWork work;
    work.event = handle;
    if (!stream.capture) work.state = event.state;   // the record as it is now
    return submit(stream, work);
}

cudaError_t elapsed(float* milliseconds, Event& start, Event& end) {
    bool untimed = (start.flags | end.flags) & cudaEventDisableTiming;
    if (untimed || !start.state->recorded || !end.state->recorded) return cudaErrorInvalidResourceHandle;
    if (start.state->capture || end.state->capture) return cudaErrorCapturedEvent;
    if (!start.state->complete || !end.state->complete) return cudaErrorNotReady;
    *milliseconds = static_cast<float>(end.state->milliseconds - start.state->milliseconds);
    return cudaSuccess;
}

}  // namespace

Event* find_event(cudaEvent_t handle) {
    if (events().count(handle)) return reinterpret_cast<Event*>(handle);
    report_call("invalid_call", "was given an event that does not exist (never created, or destroyed)",
                "Create the event first and destroy it after its last use.");
    return nullptr;
}

cudaError_t EventRecordWork::run() {
    Event* current = state ? nullptr : find_event(event);
    if (!state && !current) return cudaErrorInvalidResourceHandle;
    EventState& recorded = state ? *state : *current->state;
    recorded.recorded = recorded.complete = true;
    recorded.milliseconds = now();
    return cudaSuccess;
}

cudaError_t EventWaitWork::run() {
    Event* current = state ? nullptr : find_event(event);
    if (!state && !current) return cudaErrorInvalidResourceHandle;
    const EventState& awaited = state ? *state : *current->state;
    if (!awaited.complete) run_until(*awaited.stream, awaited.sequence);
    return cudaSuccess;
}

}  // namespace emu::cudart

using namespace emu;
using namespace emu::cudart;

extern "C" {

// ---- streams ----------------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaStreamCreate(cudaStream_t* stream) {
    return call("cudaStreamCreate", [&] { return create(stream, cudaStreamDefault, 0); });
}

cudaError_t CUDARTAPI cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    return call("cudaStreamCreateWithFlags", [&] { return create(stream, flags, 0); });
}

cudaError_t CUDARTAPI cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
    return call("cudaStreamCreateWithPriority", [&] { return create(stream, flags, priority); });
}

cudaError_t CUDARTAPI cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    if (least) *least = LEAST_PRIORITY;
    if (greatest) *greatest = GREATEST_PRIORITY;
    return cudaSuccess;
}

cudaError_t CUDARTAPI cudaStreamDestroy(cudaStream_t handle) {
    return call_always("cudaStreamDestroy", [&]() -> cudaError_t {
        if (!handle || handle == cudaStreamLegacy || handle == cudaStreamPerThread)
            return cudaErrorInvalidResourceHandle;
        Stream* stream = find_stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (stream->capture) abandon_capture(*stream);
        destroy_stream(stream);
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaStreamSynchronize(cudaStream_t handle) {
    return with_stream("cudaStreamSynchronize", handle, [](Stream& stream) -> cudaError_t {
        if (cudaError_t error = refuse_if_capturing(stream)) return error;
        if (cudaError_t error = refuse_implicit(stream)) return error;
        ++statistics().synchronizations;
        order_after(stream);
        return device_error();
    });
}

cudaError_t CUDARTAPI cudaStreamQuery(cudaStream_t handle) {
    return with_stream("cudaStreamQuery", handle, [](Stream& stream) -> cudaError_t {
        if (cudaError_t error = refuse_if_capturing(stream)) return error;
        if (cudaError_t error = refuse_implicit(stream)) return error;
        if (run_one(stream)) return cudaErrorNotReady;               // and closer to it than before
        return device_error();
    });
}

cudaError_t CUDARTAPI cudaStreamWaitEvent(cudaStream_t stream_handle, cudaEvent_t event_handle,
                                          unsigned flags) {
    return with_stream("cudaStreamWaitEvent", stream_handle, [&](Stream& stream) -> cudaError_t {
        Event* event = find_event(event_handle);
        return event ? wait(*event, event_handle, stream, flags) : cudaErrorInvalidResourceHandle;
    });
}

cudaError_t CUDARTAPI cudaStreamAddCallback(cudaStream_t handle, cudaStreamCallback_t function, void* data,
                                            unsigned flags) {
    return with_stream("cudaStreamAddCallback", handle, [&](Stream& stream) -> cudaError_t {
        if (!function || flags) return cudaErrorInvalidValue;
        if (stream.capture) return refuse_if_capturing(stream);
        CallbackWork work;
        work.function = function;
        work.stream = handle;
        work.data = data;
        return submit(stream, work);
    });
}

cudaError_t CUDARTAPI cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
    return with_stream("cudaLaunchHostFunc", handle, [&](Stream& stream) -> cudaError_t {
        if (!function) return cudaErrorInvalidValue;
        HostWork work;
        work.function = function;
        work.data = data;
        return submit(stream, work);
    });
}

cudaError_t CUDARTAPI cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
    return with_stream("cudaStreamGetFlags", handle,
                       [&](Stream& stream) { return give(flags, stream.flags); });
}

cudaError_t CUDARTAPI cudaStreamGetPriority(cudaStream_t handle, int* priority) {
    return with_stream("cudaStreamGetPriority", handle,
                       [&](Stream& stream) { return give(priority, stream.priority); });
}

cudaError_t CUDARTAPI cudaStreamGetId(cudaStream_t handle, unsigned long long* id) {
    return with_stream("cudaStreamGetId", handle,
                       [&](Stream& stream) { return give(id, static_cast<unsigned long long>(stream.id)); });
}

cudaError_t CUDARTAPI cudaStreamGetDevice(cudaStream_t handle, int* device) {
    return with_stream("cudaStreamGetDevice", handle, [&](Stream&) { return give(device, 0); });
}

cudaError_t CUDARTAPI cudaStreamAttachMemAsync(cudaStream_t handle, void*, size_t, unsigned) {
    return with_stream("cudaStreamAttachMemAsync", handle, [](Stream&) { return cudaSuccess; });
}

// Hints (access policy windows, priorities): accepted, and without effect on results.
cudaError_t CUDARTAPI cudaStreamSetAttribute(cudaStream_t handle, cudaStreamAttrID,
                                             const cudaStreamAttrValue* value) {
    return with_stream("cudaStreamSetAttribute", handle,
                       [&](Stream&) { return value ? cudaSuccess : cudaErrorInvalidValue; });
}

cudaError_t CUDARTAPI cudaStreamGetAttribute(cudaStream_t handle, cudaStreamAttrID attribute,
                                             cudaStreamAttrValue* value) {
    return with_stream("cudaStreamGetAttribute", handle, [&](Stream& stream) -> cudaError_t {
        if (!value) return cudaErrorInvalidValue;
        *value = cudaStreamAttrValue{};
        if (attribute == cudaLaunchAttributePriority) value->priority = stream.priority;
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaStreamCopyAttributes(cudaStream_t to, cudaStream_t from) {
    return with_stream("cudaStreamCopyAttributes", to, [&](Stream&) {
        return find_stream(from) ? cudaSuccess : cudaErrorInvalidResourceHandle;
    });
}

// ---- events -----------------------------------------------------------------------------------------------

cudaError_t CUDARTAPI cudaEventCreateWithFlags(cudaEvent_t* out, unsigned flags) {
    return call("cudaEventCreateWithFlags", [&]() -> cudaError_t {
        constexpr unsigned known = cudaEventBlockingSync | cudaEventDisableTiming | cudaEventInterprocess;
        if (!out || (flags & ~known)) return cudaErrorInvalidValue;
        if (flags & cudaEventInterprocess) return unsupported("an interprocess event");
        auto* event = new Event;
        event->flags = flags;
        events().insert(event);
        *out = reinterpret_cast<cudaEvent_t>(event);
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaEventCreate(cudaEvent_t* out) {
    return cudaEventCreateWithFlags(out, cudaEventDefault);
}

cudaError_t CUDARTAPI cudaEventDestroy(cudaEvent_t handle) {
    return call_always("cudaEventDestroy", [&]() -> cudaError_t {
        Event* event = find_event(handle);
        if (!event) return cudaErrorInvalidResourceHandle;
        events().erase(event);
        delete event;
        return cudaSuccess;
    });
}

cudaError_t CUDARTAPI cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream_handle,
                                               unsigned flags) {
    return with_event("cudaEventRecord", handle, [&](Event& event) -> cudaError_t {
        Stream* stream = find_stream(stream_handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        return flags <= cudaEventRecordExternal ? record(event, handle, *stream, flags)
                                                : cudaErrorInvalidValue;
    });
}

cudaError_t CUDARTAPI cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return cudaEventRecordWithFlags(event, stream, cudaEventRecordDefault);
}

cudaError_t CUDARTAPI cudaEventSynchronize(cudaEvent_t handle) {
    return with_event("cudaEventSynchronize", handle, [](Event& event) -> cudaError_t {
        if (event.state->capture) return invalidate(*event.state->capture, cudaErrorCapturedEvent);
        if (cudaError_t error = refuse_unsafe()) return error;
        ++statistics().synchronizations;
        if (!event.state->complete) run_until(*event.state->stream, event.state->sequence);
        return device_error();
    });
}

cudaError_t CUDARTAPI cudaEventQuery(cudaEvent_t handle) {
    return with_event("cudaEventQuery", handle, [](Event& event) -> cudaError_t {
        if (event.state->capture) return invalidate(*event.state->capture, cudaErrorCapturedEvent);
        if (cudaError_t error = refuse_unsafe()) return error;
        bool progress = !event.state->complete && run_one(*event.state->stream);     // polling makes progress
        return progress ? cudaErrorNotReady : device_error();
    });
}

cudaError_t CUDARTAPI cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
    return with_event("cudaEventElapsedTime", start, [&](Event& first) -> cudaError_t {
        Event* second = find_event(end);
        if (!second) return cudaErrorInvalidResourceHandle;
        return milliseconds ? elapsed(milliseconds, first, *second) : cudaErrorInvalidValue;
    });
}

}  // extern "C"
