#include "core/ceiling.h"

#include <cstring>

#include "core/threads.h"

// See core/registry.cpp.
#ifdef __APPLE__
extern const nn::Ceiling* first_ceiling[] __asm("section$start$__DATA$nn_ceilings");
extern const nn::Ceiling* last_ceiling[] __asm("section$end$__DATA$nn_ceilings");
#else
extern "C" {
__attribute__((visibility("hidden"))) extern const nn::Ceiling* __start_nn_ceilings[];
__attribute__((visibility("hidden"))) extern const nn::Ceiling* __stop_nn_ceilings[];
}
#define first_ceiling __start_nn_ceilings
#define last_ceiling __stop_nn_ceilings
#endif

namespace nn {
namespace {

}  // namespace

const Ceiling* find_ceiling(const char* name, Level level) {
    const Ceiling* found = nullptr;
    for (const Ceiling** one = first_ceiling; one != last_ceiling; ++one)
        if (!strcmp((*one)->name, name) && (*one)->level <= level && (!found || found->level < (*one)->level))
            found = *one;
    return found;
}

void run_ceiling(const Ceiling& ceiling, int64_t count, const void* data, int streams) {
    const int64_t share = data ? count / threads() / 4096 * 4096 : count;
    parallel_chunks(threads(), 1, [&](int64_t begin, int64_t end) {  // one for each thread
        for (int64_t i = begin; i < end; ++i)
            ceiling.run(share, data ? static_cast<const char*>(data) + i * share : nullptr, streams);
    });
}

}  // namespace nn
