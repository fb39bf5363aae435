// A test is a function that CHECKs; TEST names it; main runs all, or those whose names contain its argument,
// but those named after --without.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace test {

struct Test {
    const char* name;
    void (*run)();
};
std::vector<Test>& all();
struct Register {
    Register(const char* name, void (*run)()) { all().push_back({name, run}); }
};
[[noreturn]] void failed(const char* file, int line, const std::string& what);

}  // namespace test

#define TEST(name)                                            \
    static void name();                                       \
    static const test::Register register_##name(#name, name); \
    static void name()
#define CHECK(condition)                                                \
    do {                                                                \
        if (!(condition)) test::failed(__FILE__, __LINE__, #condition); \
    } while (0)
