#include <algorithm>
#include <cstring>

#include "core/cpu.h"
#include "tests/check.h"

namespace test {

std::vector<Test>& all() {
    static std::vector<Test> tests;
    return tests;
}

void failed(const char* file, int line, const std::string& what) {
    std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what.c_str());
    std::exit(1);
}

}  // namespace test

int main(int count, char** arguments) {
    std::vector<std::string> without;
    const char* chosen = "";
    for (int i = 1; i < count; ++i) {
        if (std::strcmp(arguments[i], "--without") == 0 && i + 1 < count)
            without.push_back(arguments[++i]);
        else
            chosen = arguments[i];
    }
    std::printf("levels:");
    for (nn::Level level : nn::levels_here()) std::printf(" %s", nn::level_name(level));
    std::printf("\n");
    int ran = 0;
    for (const test::Test& one : test::all()) {
        const auto left_out = std::find(without.begin(), without.end(), one.name);
        if (left_out != without.end()) {
            without.erase(left_out);
            std::printf("%s: left out\n", one.name);
            continue;
        }
        if (!std::strstr(one.name, chosen)) continue;
        one.run();
        ++ran;
        std::printf("%s\n", one.name);
    }
    for (const std::string& name : without) std::fprintf(stderr, "no test to leave out: %s\n", name.c_str());
    if (!ran) std::fprintf(stderr, "no such test\n");
    return ran && without.empty() ? 0 : 1;
}
