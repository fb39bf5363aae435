// profiles.h: the table of devices, the limits of a launch, the occupancy formula.
#include "profiles.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

#include "memory.h"
#include "options.h"
#include "reports.h"
#include "runtime.h"

namespace emu {
namespace {

constexpr size_t K = size_t{1} << 10, M = size_t{1} << 20, G = size_t{1} << 30;

constexpr int INVALID_VALUE = 1, INVALID_CONFIGURATION = 9, COOPERATIVE_TOO_LARGE = 720,
              INVALID_CLUSTER_SIZE = 912;

// Fields as in Profile: name and part; then multiprocessors: their number, threads, blocks, shared memory of
// each and of a block with opt-in, reserved, granularity; then memory: L2, its persisting part, size, bus
// bits, kHz; then clock, fp32 per fp64, copy engines, clusters.
const Profile PROFILES[] = {
    {"sm_75", "Tesla T4", 7, 5,
     40, 1024, 16, 64 * K, 64 * K, 0, 256,
     4 * M, 0, 15 * G, 256, 5001000, 1590000, 32, 3, false},
    {"sm_80", "NVIDIA A100-SXM4-80GB", 8, 0,
     108, 2048, 32, 164 * K, 163 * K, K, 128,
     40 * M, 30 * M, 79 * G, 5120, 1593000, 1410000, 2, 3, false},
    {"sm_86", "NVIDIA RTX A6000", 8, 6,
     84, 1536, 16, 100 * K, 99 * K, K, 128,
     6 * M, 4 * M, 47 * G, 384, 8001000, 1800000, 64, 2, false},
    {"sm_89", "NVIDIA L4", 8, 9,
     58, 1536, 24, 100 * K, 99 * K, K, 128,
     48 * M, 33 * M, 22 * G, 192, 6251000, 2040000, 64, 2, false},
    {"sm_90", "NVIDIA H100 80GB HBM3", 9, 0,
     132, 2048, 32, 228 * K, 227 * K, K, 128,
     50 * M, 32 * M, 79 * G, 5120, 2619000, 1980000, 2, 3, true},
};

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }
uint64_t volume(const Dim& d) { return uint64_t{d.x} * d.y * d.z; }
uint64_t volume(const uint32_t (&d)[3]) { return uint64_t{d[0]} * d[1] * d[2]; }
std::string show(const Dim& d) { return format("(%u, %u, %u)", d.x, d.y, d.z); }

// ---- one question each; all return 0 or refuse() ----------------------------------------------------------

int refuse(const LaunchRequest& request, int code, std::string message, std::string fix) {
    Report finding;
    finding.kind = "invalid_launch";
    finding.kernel = request.kernel->name;
    finding.message = std::move(message);
    finding.fix = std::move(fix);
    finding.in_kernel = false;
    report(std::move(finding));
    return code;
}

int check_grid(const LaunchRequest& r) {
    if (!volume(r.grid))
        return refuse(
            r, INVALID_CONFIGURATION, "the grid " + show(r.grid) + " has no blocks",
            "Do not launch when there is nothing to do, or round the number of blocks up, not down.");
    if (r.grid.x > Profile::MAX_GRID_X || r.grid.y > Profile::MAX_GRID_YZ || r.grid.z > Profile::MAX_GRID_YZ)
        return refuse(r, INVALID_CONFIGURATION,
                      "the grid " + show(r.grid) + " is larger than (2147483647, 65535, 65535)",
                      "Put the longest axis in x, or let each block loop over several tiles.");
    return 0;
}

int check_block(const LaunchRequest& r) {
    const Dim& b = r.block;
    uint64_t threads = volume(b);
    if (!threads)
        return refuse(r, INVALID_CONFIGURATION, "the block " + show(b) + " has no threads",
                      "Every axis must be at least 1.");
    if (threads > Profile::MAX_THREADS_PER_BLOCK || b.z > Profile::MAX_BLOCK_Z)
        return refuse(r, INVALID_CONFIGURATION,
                      format("the block %s has %llu threads; at most 1024 in all and 64 along z",
                             show(b).c_str(), static_cast<unsigned long long>(threads)),
                      "Use smaller blocks and more of them.");
    return 0;
}

int check_bounds_of_kernel(const LaunchRequest& r) {
    const KernelDescriptor& k = *r.kernel;
    const Dim& b = r.block;
    uint64_t threads = volume(b), most = volume(k.max_threads), required = volume(k.required_threads);
    if (most && threads > most)
        return refuse(
            r, INVALID_VALUE,
            format(
                "the block %s has %llu threads; the kernel was compiled for at most %llu (__launch_bounds__)",
                show(b).c_str(), static_cast<unsigned long long>(threads),
                static_cast<unsigned long long>(most)),
            "Launch fewer threads per block, or raise the bound in __launch_bounds__.");
    const uint32_t* n = k.required_threads;
    if (required && (b.x != n[0] || b.y != n[1] || b.z != n[2]))
        return refuse(r, INVALID_VALUE,
                      "the block " + show(b) + " is not the block " + show({n[0], n[1], n[2]}) +
                          " the kernel requires (__block_size__)",
                      "Launch the kernel with exactly that block.");
    return 0;
}

int check_shared(const LaunchRequest& r, uint32_t allowed) {
    const Profile& p = profile();
    uint32_t fixed = r.kernel->static_shared;
    if (size_t{fixed} + r.dynamic_shared > p.shared_per_block_optin)
        return refuse(
            r, INVALID_VALUE,
            format(
                "%u bytes of static and %u of dynamic shared memory are more than the %zu a block can have on %s",
                fixed, r.dynamic_shared, p.shared_per_block_optin, p.name),
            "Use smaller tiles or fewer stages, or choose an architecture with more shared memory.");
    if (r.dynamic_shared > allowed)
        return refuse(
            r, INVALID_VALUE,
            format(
                "%u bytes of dynamic shared memory (beside %u static) are more than the %u this kernel may use",
                r.dynamic_shared, fixed, allowed),
            format(
                "Before the launch: cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "
                "at most %zu here.",
                largest_dynamic_shared(*r.kernel)));
    return 0;
}

int check_cluster(const LaunchRequest& r, bool non_portable) {
    const uint32_t* fixed = r.kernel->cluster;
    Dim c = volume(r.cluster) ? r.cluster : Dim{fixed[0], fixed[1], fixed[2]};
    uint64_t blocks = volume(c);
    if (blocks <= 1) return 0;
    const Profile& p = profile();
    if (!p.clusters)
        return refuse(r, INVALID_CONFIGURATION, format("%s has no thread block clusters", p.name),
                      "Clusters need sm_90 or later: --arch sm_90.");
    if (volume(r.cluster) && volume(r.kernel->cluster) &&
        (c.x != fixed[0] || c.y != fixed[1] || c.z != fixed[2]))
        return refuse(r, INVALID_CLUSTER_SIZE,
                      "the cluster " + show(c) +
                          " is not the one the kernel was compiled for (__cluster_dims__)",
                      "Give the same cluster in the launch attribute, or none.");
    if (blocks > (non_portable ? Profile::LARGEST_CLUSTER : Profile::PORTABLE_CLUSTER))
        return refuse(
            r, INVALID_CLUSTER_SIZE,
            format("the cluster %s has %llu blocks; at most %d", show(c).c_str(),
                   static_cast<unsigned long long>(blocks),
                   non_portable ? Profile::LARGEST_CLUSTER : Profile::PORTABLE_CLUSTER),
            "Use a smaller cluster; up to 16 blocks with cudaFuncAttributeNonPortableClusterSizeAllowed.");
    if (r.grid.x % c.x || r.grid.y % c.y || r.grid.z % c.z)
        return refuse(r, INVALID_CONFIGURATION,
                      "the grid " + show(r.grid) + " is not a multiple of the cluster " + show(c),
                      "Round the grid up to whole clusters and let the extra blocks do nothing.");
    return 0;
}

int check_cooperative(const LaunchRequest& r) {
    if (!r.cooperative) return 0;
    Occupancy fit = occupancy(*r.kernel, static_cast<int>(volume(r.block)), r.dynamic_shared);
    uint64_t resident = static_cast<uint64_t>(fit.blocks) * static_cast<uint64_t>(profile().multiprocessors);
    if (volume(r.grid) <= resident) return 0;
    return refuse(
        r, COOPERATIVE_TOO_LARGE,
        format(
            "a cooperative grid of %llu blocks, of which only %llu can be resident at once on %s (%d per "
            "multiprocessor, by %s)",
            static_cast<unsigned long long>(volume(r.grid)), static_cast<unsigned long long>(resident),
            profile().name, fit.blocks, fit.limit),
        "Take the grid from cudaOccupancyMaxActiveBlocksPerMultiprocessor times the number of multiprocessors.");
}

}  // namespace

const Profile* find_profile(const char* arch) {
    size_t length = std::strlen(arch);
    if (length > 3 && !std::strchr("0123456789", arch[length - 1])) --length;      // sm_90a is an sm_90
    for (const Profile& candidate : PROFILES)
        if (std::strlen(candidate.name) == length && !std::strncmp(candidate.name, arch, length))
            return &candidate;
    return nullptr;
}

const Profile& profile() {
    const Profile* chosen = find_profile(options().arch.c_str());
    return chosen ? *chosen : PROFILES[1];           // configure() accepts none but these
}

size_t device_memory_bytes() { return std::min(profile().memory_bytes, memory_capacity()); }

size_t default_dynamic_shared(const KernelDescriptor& kernel) {
    return Profile::SHARED_PER_BLOCK - std::min<size_t>(kernel.static_shared, Profile::SHARED_PER_BLOCK);
}

size_t largest_dynamic_shared(const KernelDescriptor& kernel) {
    size_t all = profile().shared_per_block_optin;
    return all - std::min<size_t>(kernel.static_shared, all);
}

int check_launch(const LaunchRequest& request, uint32_t dynamic_shared_allowed, bool non_portable_cluster) {
    if (int code = check_grid(request)) return code;
    if (int code = check_block(request)) return code;
    if (int code = check_bounds_of_kernel(request)) return code;
    if (int code = check_shared(request, dynamic_shared_allowed)) return code;
    if (int code = check_cluster(request, non_portable_cluster)) return code;
    return check_cooperative(request);
}

Occupancy occupancy(const Profile& p, int threads, int registers_per_thread, size_t shared) {
    if (threads < 1 || threads > Profile::MAX_THREADS_PER_BLOCK) return {0, "threads"};
    int warps = static_cast<int>(round_up(static_cast<size_t>(threads), WARP) / WARP);
    Occupancy best{p.threads_per_multiprocessor / (warps * Profile::WARP_SIZE), "threads"};
    auto limited = [&best](size_t blocks, const char* by) {
        if (blocks < static_cast<size_t>(best.blocks)) best = {static_cast<int>(blocks), by};
    };
    limited(static_cast<size_t>(p.blocks_per_multiprocessor), "blocks");
    if (registers_per_thread >
        0) {     // warps of a block are spread over the four schedulers' register files
        size_t per_warp =
            round_up(static_cast<size_t>(registers_per_thread) * WARP, Profile::REGISTER_GRANULARITY);
        size_t resident_warps = Profile::REGISTERS_PER_MULTIPROCESSOR / per_warp / Profile::WARP_GRANULARITY *
                                Profile::WARP_GRANULARITY;
        limited(resident_warps / static_cast<size_t>(warps), "registers");
    }
    if (shared > p.shared_per_block_optin) return {0, "shared memory"};
    size_t taken = round_up(shared + p.shared_reserved_per_block, p.shared_granularity);
    if (taken) limited(p.shared_per_multiprocessor / taken, "shared memory");
    return best;
}

Occupancy occupancy(const KernelDescriptor& kernel, int threads, size_t dynamic_shared) {
    uint64_t most = volume(kernel.max_threads);
    if (most && static_cast<uint64_t>(threads) > most) return {0, "__launch_bounds__"};
    return occupancy(profile(), threads, 0, kernel.static_shared + dynamic_shared);
}

}  // namespace emu
