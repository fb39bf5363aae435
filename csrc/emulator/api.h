// The C interface that Python calls through ctypes.  Every function that can fail returns nonzero (or null);
// emu_error() says why.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

int emu_abi(void);
const char* emu_error(void);                       // of this OS thread's last failure

// "key=value;..." with keys arch schedule(forward|reverse|random) seed threads steps check count
// cp_async(lazy|eager) defer cooperative fail_malloc fail_launch stack.
// The same keys are read from the environment variable CUDA_NN_EMULATOR when the library is loaded.
int emu_configure(const char* options);

void* emu_module_load(const char* path);           // a translated module
void emu_module_unload(void* module);
int emu_module_symbol(void* module, const char* name, void** address, size_t* bytes);

void* emu_malloc(size_t bytes, const char* label);
int emu_free(void* pointer);
// either side may be device memory; ranges are checked
int emu_copy(void* destination, const void* source, size_t bytes);
int emu_fill(void* destination, int byte, size_t bytes);

// args: one pointer per parameter, as in cudaLaunchKernel.  Returns 0, or a cudaError code.
int emu_launch(void* module, const char* kernel, const uint32_t grid[3], const uint32_t block[3], void** args,
               size_t shared_bytes);

// JSON array of {kind,message,fix,kernel,file,line,ptx_line,opcode,other_file,other_line,thread,block,count}
const char* emu_reports(void);
const char* emu_counters(void);      // JSON object {kernel: {..., "by_line": [{file,line,...}]}}
// JSON object {launches, copies, bytes_to_device, bytes_to_host, synchronizations, allocations, ...}
const char* emu_statistics(void);
void emu_clear(void);                // forget reports, counters and statistics

#ifdef __cplusplus
}
#endif
