// What a translated module says of itself: its kernels, variables and, for every PTX instruction, where it
// came from.
// Written by the translator (cuda/nn/emulator/translate), read by the runtime.  Plain data, no constructors.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emu {

constexpr uint32_t DESCRIPTOR_VERSION = 1;     // raised with every change of this file

struct Thread;

// Every kernel and every device function has this shape: parameters in one buffer, the result written to
// another.
using Body = void (*)(Thread& thread, const char* parameters, char* result);

enum class Space : uint32_t { generic, global, shared, local, constant, parameter };

enum class FlopKind : uint32_t {
    none, f16, bf16, f32, f64, tensor_f16, tensor_bf16, tensor_tf32, tensor_f8, tensor_int8, tensor_f64
};

struct Site {                    // one PTX instruction; its number is its index in ModuleDescriptor::sites
    uint32_t file;               // index into files
    uint32_t line;               // line of the .cu file; 0 where the PTX has no line information
    uint32_t ptx_line;
    uint32_t basic_block;        // which counter of Thread::executions counts it
    const char* opcode;          // as spelled, e.g. "ld.global.v4.f32"
    FlopKind flop_kind;
    // per thread and execution; a tensor instruction's work is divided among its threads
    uint32_t flops;
};

struct Variable {                // shared: offset from the block's window.  global and constant: address.
    const char* name;            // as mangled in the PTX
    uint64_t place;
    uint64_t bytes;
    Space space;
};

struct KernelDescriptor {
    const char* name;                    // mangled
    Body body;
    uint32_t parameter_count;
    const uint32_t* parameter_offsets;   // into the parameter buffer
    const uint32_t* parameter_sizes;
    uint32_t parameter_bytes;            // of the whole buffer
    uint32_t static_shared;              // bytes declared, what the hardware's limit counts
    // where dynamic shared memory begins: after the statics and their red zones
    uint32_t dynamic_shared_offset;
    const Variable* shared;              // static shared variables, by offset
    uint32_t shared_count;
    // of the kernel and of the deepest known chain of calls; sizes the stack
    uint32_t local_bytes;
    uint32_t max_threads[3];             // .maxntid, 0 where not given
    uint32_t required_threads[3];        // .reqntid
    uint32_t cluster[3];                 // .reqnctapercluster, 0 where not given
    // counters of Thread::executions that the module's code uses (whole module)
    uint32_t basic_blocks;
};

// exported by a translated module as `extern "C" const emu::ModuleDescriptor emu_module`
struct ModuleDescriptor {
    uint32_t version;                    // DESCRIPTOR_VERSION
    uint32_t hooks;                      // 1: compiled with EMU_HOOKS, every access is announced
    const char* target;                  // ".target" of the PTX, e.g. "sm_80"
    const char* const* files;            // names from .file, index as in Site
    uint32_t file_count;
    const Site* sites;
    uint32_t site_count;
    const KernelDescriptor* kernels;
    uint32_t kernel_count;
    const Variable* variables;           // __device__, __constant__ (and string literals)
    uint32_t variable_count;
};

}  // namespace emu
