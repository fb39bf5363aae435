#include <cstring>

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
    int ran = 0;
    for (const test::Test& one : test::all()) {
        if (count > 1 && !std::strstr(one.name, arguments[1])) continue;
        one.run();
        ++ran;
        std::printf("%s\n", one.name);
    }
    if (!ran) std::fprintf(stderr, "no such test\n");
    return ran ? 0 : 1;
}
