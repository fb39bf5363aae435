// Texts of the checker's findings.  Internal.
#pragma once
#include "describe.h"

namespace emu {

// Counts a finding that is known already, before its text is made: true, and nothing is left to do.
bool report_again(const char* kind, const Launch&, uint32_t site, uint32_t other_site);

[[noreturn]] void report_misaligned(Thread&, uintptr_t address, const Wanted&);

}    // namespace emu
