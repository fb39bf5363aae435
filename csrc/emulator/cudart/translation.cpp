// translation.h.
#include "translation.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "../options.h"

extern char** environ;

namespace emu::cudart {
namespace {

constexpr int NO_PTX = 3;                    // the command's status

const char* environment(const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return value && *value ? value : otherwise;
}

const char* mode() { return options().count ? "count" : options().check ? "check" : "fast"; }

// The child is an ordinary program: it must neither load this library nor write this process's report.
std::vector<char*> child_environment() {
    std::vector<char*> kept;
    for (char** entry = environ; *entry; ++entry) {
        bool ours =
            !std::strncmp(*entry, "LD_PRELOAD=", 11) || !std::strncmp(*entry, "CUDA_NN_EMULATOR_REPORT=", 24);
        if (!ours) kept.push_back(*entry);
    }
    kept.push_back(nullptr);
    return kept;
}

std::string read_all(int file) {
    std::string text;
    char part[4096];
    for (;;) {
        ssize_t got = read(file, part, sizeof part);
        if (got > 0) text.append(part, static_cast<size_t>(got));
        else if (got == 0 || errno != EINTR) return text;
    }
}

bool write_all(int file, const char* data, size_t bytes) {
    while (bytes) {
        ssize_t written = write(file, data, bytes);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return false;
        data += written;
        bytes -= static_cast<size_t>(written);
    }
    return true;
}

struct TemporaryFile {                       // removed when it goes out of scope
    std::string path = std::string(environment("TMPDIR", "/tmp")) + "/fatbin-XXXXXX";
    bool ok = false;

    TemporaryFile(const char* data, size_t bytes) {
        int file = mkostemp(path.data(), O_CLOEXEC);
        if (file < 0) return;
        ok = write_all(file, data, bytes);
        close(file);
    }
    ~TemporaryFile() { unlink(path.c_str()); }
};

// ---- the answers kept -------------------------------------------------------------------------------------

std::string key_file(const char* image, size_t bytes) {
    const char* folder = environment("CUDA_NN_EMULATOR_CACHE", nullptr);
    if (!folder) return "";
    return std::string(folder) + "/fatbin-" + content_hash(image, bytes) + "-" + mode() + "-" +
           options().arch + ".path";
}

std::string read_line(const std::string& path) {
    std::string line;
    FILE* file = path.empty() ? nullptr : std::fopen(path.c_str(), "r");
    if (!file) return line;
    for (int c = std::fgetc(file); c != EOF && c != '\n'; c = std::fgetc(file)) line += static_cast<char>(c);
    std::fclose(file);
    return line;
}

void keep_line(const std::string& path,
               const std::string& line) {     // by renaming: no reader sees half of it
    if (path.empty()) return;
    std::string part = path + "." + std::to_string(getpid());
    FILE* file = std::fopen(part.c_str(), "w");
    if (!file) return;                       // a cache that cannot be written is no error
    bool written = std::fprintf(file, "%s\n", line.c_str()) > 0;
    written = std::fclose(file) == 0 && written;
    if (!written || std::rename(part.c_str(), path.c_str()) != 0) unlink(part.c_str());
}

cudaError_t ask(const char* image, size_t bytes, std::string* path, std::string* why) {
    TemporaryFile file(image, bytes);
    if (!file.ok) {
        *why = "its image could not be written to " + file.path + ": " + std::strerror(errno);
        return cudaErrorOperatingSystem;
    }
    std::string line = environment("CUDA_NN_EMULATOR_TRANSLATE", "python3 -m cuda.nn.emulator.build");
    std::vector<std::string> command = split_command(line);
    for (std::string word : {std::string("--fatbin"), file.path, std::string("--arch"), options().arch,
                             std::string("--mode"), std::string(mode())})
        command.push_back(word);
    int status = run_command(command, path);
    if (status == 0 && !path->empty()) return cudaSuccess;
    if (status == NO_PTX) {
        *why = "it holds no PTX that " + options().arch +
               " can run; build it with PTX, e.g. nvcc -gencode arch=compute_80,code=compute_80";
        return cudaErrorNoKernelImageForDevice;
    }
    *why = status < 0 ? "the translator could not be started (" + line + ")"
                      : "the translator ended with status " + std::to_string(status) +
                            "; its messages are on stderr";
    return cudaErrorInvalidKernelImage;
}

}  // namespace

std::string content_hash(const char* data,
                         size_t bytes) {     // two multiply-and-rotate lanes over 8-byte words
    uint64_t a = 0x9e3779b97f4a7c15u ^ bytes, b = 0xc2b2ae3d27d4eb4fu + bytes;
    auto mix = [&](uint64_t word) {
        a = (a ^ word) * 0xff51afd7ed558ccdu;
        a ^= a >> 32;
        b = (b + word) * 0xc4ceb9fe1a85ec53u;
        b = (b << 27 | b >> 37) ^ a;
    };
    size_t i = 0;
    for (; i + 8 <= bytes; i += 8) {
        uint64_t word;
        std::memcpy(&word, data + i, 8);
        mix(word);
    }
    uint64_t tail = 0;
    if (i < bytes) std::memcpy(&tail, data + i, bytes - i);
    mix(tail);
    mix(0x165667b19e3779f9u);
    char text[33];
    std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(a),
                  static_cast<unsigned long long>(b));
    return text;
}

std::vector<std::string> split_command(const std::string& line) {
    std::vector<std::string> words;
    bool inside = false;                     // a word has begun
    char quote = 0;
    for (size_t i = 0; i < line.size(); ++i) {
        char c = line[i];
        if (!quote && (c == ' ' || c == '\t' || c == '\n')) { inside = false; continue; }
        if (!inside) { words.emplace_back(); inside = true; }
        if (c == quote) quote = 0;
        else if (!quote && (c == '\'' || c == '"')) quote = c;
        else if (c == '\\' && quote != '\'' && i + 1 < line.size()) words.back() += line[++i];
        else words.back() += c;
    }
    return words;
}

int run_command(const std::vector<std::string>& command, std::string* first_line) {
    int ends[2];
    if (command.empty() || pipe2(ends, O_CLOEXEC) != 0) return -1;
    std::vector<char*> arguments;
    for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    std::vector<char*> variables = child_environment();
    pid_t child = 0;
    int failed = posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), variables.data());
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    std::string output = failed ? "" : read_all(ends[0]);
    close(ends[0]);
    if (failed) return -1;
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return -1;     // e.g. the program ignores SIGCHLD, and the system reaped the child
    *first_line = output.substr(0, output.find('\n'));
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

cudaError_t translate(const char* image, size_t bytes, const LoadedModule** module, std::string* why) {
    std::string key = key_file(image, bytes);
    std::string path = read_line(key);
    if (path.empty() || ::access(path.c_str(), R_OK) != 0) {             // not kept, or tidied away since
        if (cudaError_t error = ask(image, bytes, &path, why)) return error;
        keep_line(key, path);
    }
    *module = load_module(path.c_str(), why);
    return *module ? cudaSuccess : cudaErrorInvalidKernelImage;
}

}  // namespace emu::cudart
