// OS threads that share a launch's blocks (option threads=N, mode fast).  Started when first needed, kept
// until the process ends.
#include <condition_variable>
#include <mutex>
#include <thread>
#include <unistd.h>

#include "launch.h"

namespace emu {

namespace {

class Workers {
public:
    void run(Execution& own, RunningLaunch& l, uint32_t count) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            launch_ = &l;
            wanted_ = busy_ = count;
            ++round_;
            while (started_ < count) std::thread(&Workers::work, this, started_++, round_ - 1).detach();
        }
        begin_.notify_all();
        run_share(own, l);
        std::unique_lock<std::mutex> lock(mutex_);
        end_.wait(lock, [this] { return busy_ == 0; });
    }

private:
    void work(uint32_t number, uint64_t seen) {
        Execution own;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            begin_.wait(lock, [&] { return round_ != seen; });
            seen = round_;
            if (number >= wanted_) continue;
            RunningLaunch& l = *launch_;
            lock.unlock();
            run_share(own, l);
            lock.lock();
            if (--busy_ == 0) end_.notify_one();
        }
    }

    std::mutex mutex_;
    std::condition_variable begin_, end_;
    RunningLaunch* launch_ = nullptr;
    uint32_t wanted_ = 0, busy_ = 0, started_ = 0;
    uint64_t round_ = 0;
};

}  // namespace

void run_with_workers(Execution& own, RunningLaunch& l, uint32_t workers) {
    static Workers* pool = nullptr;
    static pid_t owner = 0;
    if (owner != getpid()) {              // after a fork the threads are the parent's
        pool = new Workers;
        owner = getpid();
    }
    pool->run(own, l, workers);
}

}  // namespace emu
