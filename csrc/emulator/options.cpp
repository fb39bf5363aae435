// Reading of "key=value;..." into Options.
#include "options.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "profiles.h"

namespace emu {

namespace {

bool read_integer(const std::string& text, int64_t least, int64_t most, int64_t* value) {
    char* end = nullptr;
    errno = 0;
    const long long read = std::strtoll(text.c_str(), &end, 0);
    if (text.empty() || *end || errno || read < least || read > most) return false;
    *value = read;
    return true;
}

bool read_schedule(const std::string& text, Schedule* schedule) {
    if (text == "forward") *schedule = Schedule::forward;
    else if (text == "reverse") *schedule = Schedule::reverse;
    else if (text == "random") *schedule = Schedule::random;
    else return false;
    return true;
}

// One pair.  An empty answer means it was understood, otherwise what the value should have been.
std::string apply(Options& o, const std::string& key, const std::string& value) {
    int64_t number = 0;
    const auto integer = [&](int64_t least, int64_t most) {
        return read_integer(value, least, most, &number);
    };
    const auto flag = [&](bool* field) {
        if (!integer(0, 1)) return std::string("0 or 1");
        *field = number != 0;
        return std::string();
    };
    if (key == "arch")
        return find_profile(value.c_str()) ? (o.arch = value, "") : "sm_75, sm_80, sm_86, sm_89 or sm_90";
    if (key == "schedule") return read_schedule(value, &o.schedule) ? "" : "forward, reverse or random";
    if (key == "seed")
        return integer(0, INT64_MAX) ? (o.seed = static_cast<uint64_t>(number), "") : "a number from 0";
    if (key == "threads")
        return integer(1, 256) ? (o.threads = static_cast<uint32_t>(number), "") : "1 to 256";
    if (key == "steps")
        return integer(-1, INT64_MAX) ? (o.steps = number, "") : "a number, 0 (unlimited) or -1 (automatic)";
    if (key == "check") return flag(&o.check);
    if (key == "count") return flag(&o.count);
    if (key == "defer") return flag(&o.defer);
    if (key == "cooperative") return flag(&o.cooperative);
    if (key == "cp_async") {
        if (value != "lazy" && value != "eager") return "lazy or eager";
        o.cp_async_eager = value == "eager";
        return "";
    }
    if (key == "fail_malloc") return integer(0, INT64_MAX) ? (o.fail_malloc = number, "") : "a number from 0";
    if (key == "fail_launch") return integer(0, INT64_MAX) ? (o.fail_launch = number, "") : "a number from 0";
    if (key == "stack") {
        return integer(0, int64_t(1) << 30) ? (o.stack = static_cast<uint64_t>(number), "")
                                            : "0 to 1073741824 bytes";
    }
    return "?";
}

// All pairs or, at the first that is wrong, none.
bool change(Options* options, const std::string& all, std::string* why) {
    Options changed = *options;
    for (size_t at = 0; at < all.size();) {
        size_t end = all.find(';', at);
        if (end == std::string::npos) end = all.size();
        const std::string pair = all.substr(at, end - at);
        at = end + 1;
        if (pair.empty()) continue;
        const size_t equals = pair.find('=');
        const std::string key = pair.substr(0, equals);
        const std::string expected =
            equals == std::string::npos ? "key=value" : apply(changed, key, pair.substr(equals + 1));
        if (expected.empty()) continue;
        if (expected == "?") {
            *why = "option '" + key +
                   "' is unknown; known are arch schedule seed threads steps check count cp_async defer "
                   "cooperative fail_malloc fail_launch stack";
        } else {
            *why = "option '" + pair + "' is not valid: expected " + expected;
        }
        return false;
    }
    *options = changed;
    return true;
}

}  // namespace

Options& options() {
    static Options* const chosen = [] {              // never destroyed: used until the process ends
        auto* first = new Options;
        std::string why;
        if (const char* text = std::getenv("CUDA_NN_EMULATOR"); text && !change(first, text, &why)) {
            std::fprintf(stderr, "CUDA_NN_EMULATOR: %s\n", why.c_str());
        }
        return first;
    }();
    return *chosen;
}

bool configure(const char* text, std::string* why) { return change(&options(), text ? text : "", why); }

}  // namespace emu
