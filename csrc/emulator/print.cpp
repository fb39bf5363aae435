// What kernels do besides computing: printf, assert, trap, malloc.
//
// printf: the caller has packed the arguments as for a variadic function, each at a multiple of its size (4
// or 8 bytes).  Lines are collected and reach stdout when the host synchronises, so that they stand where a
// GPU's would.
#include <unistd.h>

#include <cstdio>
#include <mutex>

#include "memory.h"
#include "reports.h"
#include "runtime.h"

namespace emu {

uint64_t device_heap_bytes = 8 << 20;

namespace {

std::mutex printing;
std::string* printed;                    // leaked: kernels may print until the process ends

class Arguments {
public:
    explicit Arguments(const char* at) : at_(at) {}
    template <class T> T next() {
        const uintptr_t size = sizeof(T);
        at_ = reinterpret_cast<const char*>((reinterpret_cast<uintptr_t>(at_) + size - 1) / size * size);
        const T value = load<T>(at_);
        at_ += size;
        return value;
    }

private:
    const char* at_;
};

// One conversion specification, from its '%' on.
struct Conversion {
    std::string flags;                   // flags, width and precision, as printf takes them
    std::string length;                  // hh h l ll z t j
    char letter = 0;                     // 0: the format ends within the specification
};

template <class T> void print_as(std::string* out, const Conversion& c, const char* length, T value) {
    const std::string pattern = "%" + c.flags + length + c.letter;
    char small[128];
    const int needed = snprintf(small, sizeof small, pattern.c_str(), value);
    if (needed < 0) return;
    if (static_cast<size_t>(needed) < sizeof small) {
        out->append(small, static_cast<size_t>(needed));
        return;
    }
    std::string large(static_cast<size_t>(needed) + 1, '\0');
    snprintf(large.data(), large.size(), pattern.c_str(), value);
    large.pop_back();
    *out += large;
}

// Reads a specification; `*` takes its value from the arguments, which are counted.
Conversion read_conversion(const char*& at, Arguments& arguments, uint32_t* used) {
    Conversion c;
    for (; *at && std::string("-+ #0123456789.*").find(*at) != std::string::npos; ++at) {
        if (*at != '*') {
            c.flags += *at;
            continue;
        }
        c.flags += std::to_string(arguments.next<int32_t>());
        ++*used;
    }
    for (; *at && std::string("hlLqjzt").find(*at) != std::string::npos; ++at) c.length += *at;
    if (*at) c.letter = *at++;
    return c;
}

void print_integer(std::string* out, const Conversion& c, Arguments& arguments) {
    const bool wide = !c.length.empty() && c.length[0] != 'h';
    if (wide) return print_as(out, c, "ll", arguments.next<long long>());
    print_as(out, c, c.length.c_str(), arguments.next<int32_t>());
}

void print_conversion(std::string* out, const Conversion& c, Arguments& arguments, uint32_t* used) {
    switch (c.letter) {
        case 0: return;
        case '%': *out += '%'; return;
        case 'd': case 'i': case 'o': case 'u': case 'x': case 'X': print_integer(out, c, arguments); break;
        case 'c': print_as(out, c, "", arguments.next<int32_t>()); break;
        case 'e':
        case 'E':
        case 'f':
        case 'F':
        case 'g':
        case 'G':
        case 'a':
        case 'A': print_as(out, c, "", arguments.next<double>()); break;
        case 'p': print_as(out, c, "", arguments.next<const void*>()); break;
        case 's': {
            const char* text = arguments.next<const char*>();
            print_as(out, c, "", text ? text : "(null)");
            break;
        }
        default:                                                    // printed as it stands, takes nothing
            *out += "%" + c.flags + c.length + c.letter;
            return;
    }
    ++*used;
}

uint32_t print_formatted(std::string* out, const char* format, const char* packed) {
    Arguments arguments(packed);
    uint32_t used = 0;
    for (const char* at = format; *at;) {
        if (*at != '%') {
            *out += *at++;
            continue;
        }
        ++at;
        const Conversion c = read_conversion(at, arguments, &used);
        print_conversion(out, c, arguments, &used);
    }
    return used;
}

void append(const std::string& text) {
    const std::lock_guard<std::mutex> lock(printing);
    if (!printed) printed = new std::string;
    *printed += text;
}

// Bytes that malloc in kernels has handed out.
std::mutex heap;
uint64_t heap_used;

void report_bad_free(Thread& t, const void* pointer, uint32_t site) {
    report(finding(t, "out_of_bounds", site,
                   format("free(%p): not an address that malloc in a kernel returned", pointer),
                   "free each block once, with the pointer that malloc returned"));
}

void report_trap(Thread& t, uint32_t site) {
    report(finding(t, "trap", site, "the kernel executed a trap",
                   "see why the code decided to stop here (__trap, or code that must not be reached)"));
}

void report_assert(Thread& t, const char* message, const char* file, uint32_t line, const char* function,
                   uint32_t site) {
    report(finding(t, "assert", site,
                   format("%s:%u: %s: assertion `%s' failed", file ? file : "?", line,
                          function ? function : "?", message ? message : "?"),
                   "the condition does not hold for this thread: look at the values that lead to it"));
    append(format("%s:%u: %s: block: [%u,%u,%u], thread: [%u,%u,%u] Assertion `%s` failed.\n",
                  file ? file : "?", line, function ? function : "?", t.block->index.x, t.block->index.y,
                  t.block->index.z, t.x, t.y, t.z, message ? message : "?"));
}

}  // namespace

void flush_print() {
    const std::lock_guard<std::mutex> lock(printing);
    if (!printed || printed->empty()) return;
    fwrite(printed->data(), 1, printed->size(), stdout);
    fflush(stdout);
    printed->clear();
}

// The number of arguments, as CUDA's printf returns it.
uint32_t print(Thread&, const char* format, const char* arguments, uint32_t) {
    if (!format) return static_cast<uint32_t>(-1);
    std::string text;
    const uint32_t used = print_formatted(&text, format, arguments);
    append(text);
    return used;
}

void trap(Thread& t, uint32_t site) {
    report_trap(t, site);
    abandon(t, CUDA_LAUNCH_FAILURE);
}

void assert_fail(Thread& t, const char* message, const char* file, uint32_t line, const char* function,
                 uint32_t site) {
    report_assert(t, message, file, line, function, site);
    abandon(t, CUDA_ASSERT);
}

void* device_malloc(Thread&, uint64_t bytes, uint32_t) {
    const std::lock_guard<std::mutex> lock(heap);
    if (bytes == 0 || bytes > device_heap_bytes - std::min(heap_used, device_heap_bytes)) return nullptr;
    void* memory = memory_allocate(bytes, MemoryKind::device, "malloc in a kernel");
    if (memory) heap_used += bytes;
    return memory;
}

void device_free(Thread& t, void* pointer, uint32_t site) {
    if (!pointer) return;
    const std::lock_guard<std::mutex> lock(heap);
    const Allocation* a = memory_find(pointer);
    if (!a || a->freed || a->begin != pointer || a->label != "malloc in a kernel")
        return report_bad_free(t, pointer, site);
    heap_used -= std::min<uint64_t>(heap_used, a->bytes);
    memory_free(pointer);
}

}  // namespace emu
