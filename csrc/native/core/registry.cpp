#include "core/registry.h"

#include <algorithm>
#include <map>

// NN_KERNEL puts pointers to constant entries into a section of this name; the linker knows where it begins
// and ends.  No constructor runs, so nothing compiled for one level is executed because the library was
// loaded.
#ifdef __APPLE__
extern const nn::Entry* first_entry[] __asm("section$start$__DATA$nn_kernels");
extern const nn::Entry* last_entry[] __asm("section$end$__DATA$nn_kernels");
#else
extern "C" {
__attribute__((visibility("hidden"))) extern const nn::Entry* __start_nn_kernels[];
__attribute__((visibility("hidden"))) extern const nn::Entry* __stop_nn_kernels[];
}
#define first_entry __start_nn_kernels
#define last_entry __stop_nn_kernels
#endif

namespace nn {
namespace {

std::vector<Kernel> collect() {
    std::map<std::string, Kernel> found;
    for (const Entry** entry = first_entry; entry != last_entry; ++entry) {
        Signature signature = parse((*entry)->text);
        Kernel& kernel = found[signature.name];
        if (kernel.signature.name.empty()) kernel.signature = std::move(signature);
        const int level = static_cast<int>((*entry)->level), dtype = static_cast<int>((*entry)->dtype);
        kernel.table[level][dtype] = (*entry)->run;
        kernel.of_many[level][dtype] = (*entry)->run_many;
    }
    std::vector<Kernel> kernels;
    for (auto& [name, kernel] : found) kernels.push_back(std::move(kernel));
    return kernels;
}

}  // namespace

Function Kernel::find(Level level, DType dtype) const {
    for (int i = static_cast<int>(level); i >= 0; --i)
        if (Function run = table[i][static_cast<int>(dtype)]) return run;
    return nullptr;
}

FunctionOfMany Kernel::find_of_many(Level level, DType dtype) const {
    for (int i = static_cast<int>(level); i >= 0; --i)
        if (FunctionOfMany run = of_many[i][static_cast<int>(dtype)]) return run;
    return nullptr;
}

std::vector<DType> Kernel::dtypes() const {
    std::vector<DType> found;
    for (int i = 0; i < dtype_count; ++i)
        if (find(Level::generic, static_cast<DType>(i))) found.push_back(static_cast<DType>(i));
    return found;
}

const std::vector<Kernel>& kernels() {
    static const std::vector<Kernel> all = collect();
    return all;
}

const Kernel* find_kernel(const std::string& name) {
    const auto& all = kernels();
    auto place = std::lower_bound(all.begin(), all.end(), name,
                                  [](const Kernel& k, const std::string& n) { return k.signature.name < n; });
    return place != all.end() && place->signature.name == name ? &*place : nullptr;
}

bool level_is_built(Level level) {
    for (const Entry** entry = first_entry; entry != last_entry; ++entry)
        if ((*entry)->level == level) return true;
    return false;
}

}  // namespace nn
