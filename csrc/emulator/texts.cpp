// How places in a kernel are named in messages.
#include "reports.h"
#include "runtime.h"

namespace emu {

std::string site_text(const Launch& l, uint32_t site) {
    const Site* s = site_of(l, site);
    if (!s) return "an unknown place";
    if (!s->line || s->file >= l.module->file_count) return format("PTX line %u", s->ptx_line);
    const std::string path = l.module->files[s->file];
    const size_t slash = path.rfind('/');
    return format("%s:%u", slash == std::string::npos ? path.c_str() : path.c_str() + slash + 1, s->line);
}

std::string lanes_text(uint32_t lanes) {
    std::string text;
    for (uint32_t i = 0; i < WARP;) {
        if (!(lanes >> i & 1)) {
            ++i;
            continue;
        }
        uint32_t end = i;
        while (end + 1 < WARP && (lanes >> (end + 1) & 1)) ++end;
        text += (text.empty() ? "" : ", ") + std::to_string(i) + (end > i ? "-" + std::to_string(end) : "");
        i = end + 1;
    }
    return text.empty() ? "none" : text;
}

}  // namespace emu
