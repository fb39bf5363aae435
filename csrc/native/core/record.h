// Recorded steps: a list of native calls, captured while they run, replayed without Python between them.
//
//     Recording recording;  recording.declare(weights, inputs, caches ...)
//     ... calls; each is handed to add() ...
//     recording.finish()         buffers planned by lifetime, checked by a first replay
//     recording.replay()         the same calls on the same places: write inputs, replay, read results
//
// What a call touches must be known: declared memory, or the result of an earlier recorded call.  Anything
// else was made by something that is not recorded (a NumPy operation between two kernels) and would not
// happen again: before() refuses it by name.  Who can tell what has been made since the recording began gives
// declare_all_but(made): all other memory counts as declared then, and that it stays is the caller's care.
// Numbers that change from step to step are read from memory (Number::at).
//
// The plan: a result lives from the call that makes it to the last that reads it, and lies, from then on, at
// a fixed place in one arena, which results that do not live at the same time share.  Results that somebody
// still holds when the recording ends are its outputs; they stay where they are and belong to the recording.
//
// The check: the arena and the outputs are overwritten with NaN, what was changed in place is put back, and
// the first replay must give every output and everything changed in place to the bit.  And what kernels read
// of declared memory, and none changes, must hold at the end what it held when it was declared by name or, by
// declare_all_but, first read (of arrays above 1 MiB, in samples).  So a write that is not recorded is found
// in results and in memory that is only read.  Not found, and the caller's care: under declare_all_but a write
// before the first read; one that a later write takes back; one between the samples; one into memory that
// kernels change, too, if it changes no bit of what the replay gives.
// It takes copies of what is changed in place; before() refuses where they would be too large.
#pragma once
#include <string>
#include <vector>

#include "core/fingerprint.h"
#include "core/types.h"

namespace nn {

class Recording {
  public:
    Recording() = default;
    ~Recording();
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;

    void declare(const void* data, int64_t bytes);  // memory from before the recording, which outlives it
    void declare_all_but(bool (*made)(const void*)) { made_ = made; }
    bool is_result(const void* data) const { return find_buffer(data) >= 0; }
    void allocated(void* data, int64_t bytes);      // a result's buffer, just taken from the pool
    void freed(void* data);                         // given back: nobody outside will read it
    std::string before(const Call& call);           // "" or why it cannot be recorded; then the call runs
    void add(const Call& call, Function run);
    std::string finish();  // "" or what the check found
    void replay() const;   // throws std::runtime_error if a kernel declines what its arguments hold now

    struct Timed {
        std::string kernel;
        int64_t bytes;   // of its arrays
        double seconds;  // mean of the rounds
    };
    std::vector<Timed> profile(int rounds) const;  // replays, call by call

    int64_t calls() const { return static_cast<int64_t>(steps_.size()); }
    int64_t arena_bytes() const { return arena_bytes_; }
    int64_t eager_bytes() const { return eager_bytes_; }  // most that was alive at once while recording
    int64_t output_bytes() const;
    std::vector<void*> outputs() const;  // buffers still held

  private:
    struct Buffer {
        char* data;
        int64_t bytes;
        int first = -1, last = -1;  // calls that use it
        bool held = true;
        int64_t place = 0;  // in the arena
    };
    struct Range {  // declared memory
        char* begin;
        int64_t bytes;
        Fingerprint bits;   // in samples
        bool read = false;  // by a kernel
    };
    struct Step {
        Call call;
        Function run;
        int buffer[max_arrays];   // index into buffers_, or -1: declared
        char* where[max_arrays];  // while it was recorded
    };
    struct Changed {
        char* data;
        std::vector<char> before;
    };

    int find_buffer(const void* data) const;
    bool declared(const void* data) const;
    void note_read(char* data, int64_t bytes);
    bool written_to(const Range& range) const;
    void plan();
    void move_to_arena();
    std::string changed_between() const;
    std::string check();

    std::vector<Buffer> buffers_;
    std::vector<Range> declared_;
    std::vector<Range> found_;    // declared as all that was there
    std::vector<Range> written_;  // declared memory that kernels write
    bool (*made_)(const void*) = nullptr;
    std::vector<Step> steps_;
    std::vector<Changed> changed_;
    int64_t saved_bytes_ = 0;  // in changed_
    char* arena_ = nullptr;
    int64_t arena_bytes_ = 0, eager_bytes_ = 0, alive_bytes_ = 0;
};

}  // namespace nn
