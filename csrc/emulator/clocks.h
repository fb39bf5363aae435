// Who knows what of whom: the vector clocks of the checker.
//
// Time is one counter, raised at every release (barrier, fence, arrival).  A thread stamps its accesses with
// its epoch: the tick of its last release.  An access of thread a at epoch e happened before what thread b
// does now if b knows a up to e:
//   of its own block    everything before the tick `floor` (the last barrier of the whole block), and what
//   its Clock holds beyond it of other blocks     what the View of that block says, as it was when that block
//   published it
// Clocks are shared between threads and never changed while shared, so a barrier hands out one pointer.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

namespace emu {

// A counted pointer.  Not atomic: watched launches run on one OS thread.
template <class T> class Ref {
public:
    Ref() = default;
    explicit Ref(T* object) : object_(object) {
        if (object_) ++object_->references;
    }
    Ref(const Ref& other) : Ref(other.object_) {}
    Ref(Ref&& other) noexcept : object_(other.object_) { other.object_ = nullptr; }
    Ref& operator=(Ref other) noexcept {
        std::swap(object_, other.object_);
        return *this;
    }
    ~Ref() { reset(); }
    void reset() {
        if (object_ && --object_->references == 0) T::destroy(object_);
        object_ = nullptr;
    }
    T* get() const { return object_; }
    T* operator->() const { return object_; }
    T& operator*() const { return *object_; }
    explicit operator bool() const { return object_ != nullptr; }
    bool operator==(const Ref& other) const { return object_ == other.object_; }
    bool shared() const { return object_ && object_->references > 1; }

private:
    T* object_ = nullptr;
};

// For each thread of a block the epoch up to which it is known; 0: nothing.
struct Clock {
    uint32_t references;
    uint32_t size;
    uint32_t epochs[1];    // really `size`

    static Clock* create(uint32_t size);    // all zero
    static void destroy(Clock*);
    bool knows(uint32_t thread, uint32_t epoch) const { return epochs[thread] >= epoch; }
};

void join(Ref<Clock>& into, const Ref<Clock>& from);                              // elementwise maximum
void raise(Ref<Clock>& clock, uint32_t size, uint32_t thread, uint32_t epoch);    // one element

// What is known of one block.
struct View {
    uint32_t floor = 0;    // everything before this tick
    Ref<Clock> clock;      // and beyond
    bool knows(uint32_t thread, uint32_t epoch) const {
        return epoch < floor || (clock && clock->knows(thread, epoch));
    }
    bool empty() const { return floor == 0 && !clock; }
};

void join(View& into, const View& from);

// What is known of many blocks, by their ordinal in the launch.  In spans that are shared where nothing was
// changed: a chain of blocks that each add themselves (tickets, look-back scans) must not cost the square of
// their number.
struct Blocks {
    static constexpr uint32_t SPAN = 64;
    struct Span {
        uint32_t references = 0;
        View views[SPAN];
        static void destroy(Span* span) { delete span; }
    };
    uint32_t references = 0;
    std::vector<Ref<Span>> spans;

    static void destroy(Blocks* blocks) { delete blocks; }
    const View* find(uint32_t block) const;
};

void join(Ref<Blocks>& into, const Ref<Blocks>& from);
void join(Ref<Blocks>& into, uint32_t block, const View& view);

// What of the own block a thread may pass on by a relaxed store or an atomic: what lies before a fence; and
// what is ordered for the async proxy.  Handed on along with all knowledge, as fences are cumulative.
struct Fenced {
    enum Kind : uint32_t { BLOCK, DEVICE, PROXY, KINDS };
    uint32_t references = 0;
    View views[KINDS];
    Ref<Blocks> others;    // known before the device fence
    Ref<Blocks> near;      // known before the last fence of any scope: for the own block

    static void destroy(Fenced* fenced) { delete fenced; }
};

void join(Ref<Fenced>& into, const Ref<Fenced>& from);

}    // namespace emu
