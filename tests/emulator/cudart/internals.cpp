// Parts of the runtime library that no call shows: where memory lies, the occupancy formula, the translator's
// command line.
#include <unistd.h>

#include <vector>

#include "check.h"
#include "cudart/translation.h"
#include "memory.h"
#include "profiles.h"

using namespace emu;

namespace {

void memory() {
    char* p = static_cast<char*>(memory_allocate(100, MemoryKind::device, "first"));
    char* q = static_cast<char*>(memory_allocate(100, MemoryKind::device, "second"));
    CHECK("found inside", memory_find(p + 99) && memory_find(p + 99)->label == "first");
    CHECK("not found behind", !memory_find(p + 100) && !memory_find(p - 1));
    CHECK("near behind", memory_near(p + 300) && memory_near(p + 300)->label == "first");
    CHECK("near before", memory_near(q - 5) && memory_near(q - 5)->begin == q);
    CHECK("apart", q - p >= 4096 || p - q >= 4096);
    CHECK("in the arena", in_arena(p) && !in_arena(&p));
    CHECK("the page ends with it", reinterpret_cast<uintptr_t>(p + 256) % 4096 == 0);
    const Allocation* before = memory_find(p);
    CHECK("free", memory_free(p) && !memory_free(p) && !memory_free(q + 1));
    CHECK("still known", memory_find(p) == before && before->freed && before->label == "first");
    char* again = static_cast<char*>(memory_allocate(100, MemoryKind::device, "third"));
    CHECK("quarantine", again != p);
    memory_label(q, "renamed");
    CHECK("label", memory_find(q)->label == "renamed");
    memory_free(q);
    memory_free(again);
    static char variable[64];
    memory_register(variable, sizeof variable, MemoryKind::module, "variable v");
    CHECK("registered",
          memory_find(variable + 63) && !memory_find(variable + 64) && memory_near(variable + 64));
    memory_unregister(variable);
    CHECK("unregistered", !memory_find(variable));
    char* none = static_cast<char*>(memory_allocate(0, MemoryKind::device, "nothing"));
    CHECK("nothing has an address", none && !memory_find(none) && memory_near(none)->label == "nothing");
    memory_free(none);
    CHECK("nothing left", memory_in_use() == 0);
}

// What is written to fresh or reused memory never shows in the next allocation.
void fill() {
    bool clean = true;
    for (int i = 0; i < 2000; ++i) {
        size_t bytes = static_cast<size_t>(1 + i * 37 % 20000);
        auto* p = static_cast<unsigned char*>(memory_allocate(bytes, MemoryKind::device, "reused"));
        for (size_t b = 0; b < bytes; b += 61) clean = clean && p[b] == 0xff;
        std::memset(p, i, bytes);
        memory_free(p);
    }
    CHECK("always filled", clean);
}

void occupancies() {
    const Profile& a100 = *find_profile("sm_80");
    auto blocks = [](const Profile& p, int threads, int registers, size_t shared) {
        return occupancy(p, threads, registers, shared).blocks;
    };
    CHECK("by threads", blocks(a100, 256, 32, 0) == 8);
    CHECK("by registers", blocks(a100, 256, 64, 0) == 4);
    CHECK("registers are given to warps in units of 256", blocks(a100, 256, 33, 0) == 6);
    CHECK("255 registers", blocks(a100, 256, 255, 0) == 1 && blocks(a100, 512, 255, 0) == 0);
    CHECK("by blocks", blocks(a100, 32, 16, 0) == 32);
    CHECK("by shared memory", blocks(a100, 128, 32, 163 << 10) == 1 && blocks(a100, 128, 32, 81 << 10) == 2);
    CHECK("one KiB of each block is reserved", blocks(a100, 128, 32, 82 << 10) == 1);
    CHECK("the limit is named", !std::strcmp(occupancy(a100, 256, 64, 0).limit, "registers"));
    CHECK("part of a warp counts as one", blocks(a100, 33, 32, 0) == 32 && blocks(a100, 65, 32, 0) == 21);
    CHECK("too much", blocks(a100, 128, 32, 164 << 10) == 0 && blocks(a100, 1025, 32, 0) == 0);
    const Profile& t4 = *find_profile("sm_75");
    CHECK("Turing",
          blocks(t4, 1024, 32, 0) == 1 && blocks(t4, 64, 32, 0) == 16 && blocks(t4, 128, 32, 33 << 10) == 1);
    const Profile& ada = *find_profile("sm_89");
    CHECK("Ada", blocks(ada, 512, 32, 0) == 3 && blocks(ada, 32, 32, 0) == 24 &&
                     blocks(ada, 128, 32, 49 << 10) == 2);
    CHECK("suffix", find_profile("sm_90a") == find_profile("sm_90") && !find_profile("sm_70") &&
                        !find_profile("sm_900"));
}

void command() {
    using Words = std::vector<std::string>;
    using cudart::split_command;
    CHECK("blanks", split_command("  a  b\tc ") == Words({"a", "b", "c"}));
    CHECK("quotes", split_command("'a b' \"c 'd'\" e'f'g") == Words({"a b", "c 'd'", "efg"}));
    CHECK("backslashes", split_command("a\\ b '\\'") == Words({"a b", "\\"}));
    CHECK("empty words", split_command("'' x \"\"") == Words({"", "x", ""}) && split_command("").empty());
    std::string line;
    CHECK("first line",
          cudart::run_command({"/bin/sh", "-c", "echo one; echo two"}, &line) == 0 && line == "one");
    CHECK("status", cudart::run_command({"/bin/sh", "-c", "exit 7"}, &line) == 7 && line.empty());
    CHECK("signal", cudart::run_command({"/bin/sh", "-c", "kill -9 $$"}, &line) == 137);
    CHECK("missing",
          cudart::run_command({"/nonexistent"}, &line) == -1 && cudart::run_command({}, &line) == -1);
    char text[1000] = "abc";
    std::string first = cudart::content_hash(text, sizeof text);
    text[999] = 1;
    CHECK("hash", first.size() == 32 && cudart::content_hash(text, sizeof text) != first &&
                      cudart::content_hash(text, 10) != cudart::content_hash(text, 11));
}

}  // namespace

int main() {
    memory();
    fill();
    occupancies();
    command();
    return failures;
}
