// From a fat binary to a loaded module.  The translator is a command of its own (Python), asked once per fat
// binary:
//
//   <command> --fatbin FILE --arch sm_80 --mode check       prints the path of the translated module
//
// Status 0: done.  3: no PTX in it that this device could run.  Anything else: its messages, on stderr, say
// why.
// CUDA_NN_EMULATOR_TRANSLATE  the command, quoted as for a shell; default "python3 -m cuda.nn.emulator.build"
// CUDA_NN_EMULATOR_CACHE      a folder of this translator's version: there the answer is kept for the next
// process
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <vector>

#include "../runtime.h"

namespace emu::cudart {

// Loads the module of the image; on failure says why in *why.
cudaError_t translate(const char* image, size_t bytes, const LoadedModule** module, std::string* why);

// The parts, for tests.
std::string content_hash(const char* data, size_t bytes);                 // 128 bits, 32 hexadecimal digits
std::vector<std::string> split_command(const std::string& line);     // by blanks; '..', ".." and \ keep them
int run_command(const std::vector<std::string>& command, std::string* first_line);    // exit status, or -1

}  // namespace emu::cudart
