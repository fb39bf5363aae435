// Instructions by what they occupy: the classes of the instruction mix.
#include <cstring>
#include <string>
#include <unordered_map>

#include "counters.h"

namespace emu {

namespace {

struct Class {
    const char* name;
    const char* opcodes;
};

// By base opcode.  Loads, stores and arithmetic are told apart further by their modifiers.
const Class CLASSES[] = {
    {"tensor", "mma wmma wgmma"},
    {"matrix", "ldmatrix stmatrix movmatrix"},
    {"warp", "shfl vote match redux activemask elect"},
    {"barrier", "bar barrier"},
    {"atomic", "atom red multimem"},
    {"async",
     "cp mbarrier cpr prefetch prefetchu applypriority discard createpolicy tensormap st_async red_async"},
    {"fence", "fence membar griddepcontrol setmaxnreg"},
    {"control", "bra brx call ret exit trap brkpt nanosleep pmevent"},
    {"convert", "cvt cvta isspacep mapa getctarank"},
    {"compare", "setp set selp slct testp"},
    {"move", "mov prmt"},
    {"logic", "and or xor not cnot lop3 shl shr shf bfe bfi bmsk szext brev popc clz bfind fns"},
    {"special", "rcp sqrt rsqrt ex2 lg2 sin cos tanh"},
    {"arithmetic",
     "add addc sub subc mul mul24 mad madc mad24 fma div rem abs neg min max sad dp4a dp2a copysign vadd "
     "vsub vabsdiff "
     "vmin vmax vshl vshr vmad vset vadd2 vadd4 vsub2 vsub4 vavrg2 vavrg4 vabsdiff2 vabsdiff4 vmin2 vmin4 "
     "vmax2 "
     "vmax4 vset2 vset4"},
    {"load", "ld ldu"},
    {"store", "st"},
};

std::unordered_map<std::string, const char*> by_opcode() {
    std::unordered_map<std::string, const char*> table;
    for (const Class& c : CLASSES) {
        for (const char* at = c.opcodes; *at;) {
            const size_t length = std::strcspn(at, " ");
            table.emplace(std::string(at, length), c.name);
            at += length + (at[length] == ' ');
        }
    }
    return table;
}

bool has(const char* opcode, const char* modifier) {
    const size_t length = std::strlen(modifier);
    for (const char* at = std::strstr(opcode, modifier); at; at = std::strstr(at + 1, modifier)) {
        const char after = at[length];
        if (after == 0 || after == '.' || after == ':' || after == 'x') return true;
    }
    return false;
}

const char* memory_class(const char* opcode, bool load) {
    if (has(opcode, ".global")) return load ? "load.global" : "store.global";
    if (has(opcode, ".shared")) return load ? "load.shared" : "store.shared";
    if (has(opcode, ".local")) return load ? "load.local" : "store.local";
    if (has(opcode, ".param")) return load ? "load.param" : "store.param";
    if (has(opcode, ".const")) return "load.const";
    return load ? "load.generic" : "store.generic";
}

const char* arithmetic_class(const char* opcode) {
    if (has(opcode, ".f64")) return "float64";
    if (has(opcode, ".f32")) return "float32";
    if (has(opcode, ".f16") || has(opcode, ".bf16")) return "float16";
    return "integer";
}

}    // namespace

const char* instruction_class(const char* opcode) {
    static const auto* table = new std::unordered_map<std::string, const char*>(by_opcode());
    const auto found = table->find(std::string(opcode, std::strcspn(opcode, ".")));
    if (found == table->end()) return "other";
    const std::string_view name = found->second;
    if (name == "load" || name == "store") return memory_class(opcode, name == "load");
    if (name == "arithmetic") return arithmetic_class(opcode);
    if (name == "barrier" && std::strncmp(opcode, "bar.warp", 8) == 0) return "warp";
    if (name == "tensor" &&
        (has(opcode, ".fence") || has(opcode, ".commit_group") || has(opcode, ".wait_group")))
        return "fence";
    if (name == "tensor" && (has(opcode, ".load") || has(opcode, ".store"))) return "matrix";
    return found->second;
}

}    // namespace emu
