#include "core/clipped_step.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/cpu.h"
#include "core/threads.h"

namespace nn {

// Shewchuk (1997): partial sums that do not overlap, the largest last; then rounded once, half to even.
double exact_sum(const double* x, int64_t count) {
    std::vector<double> parts;
    for (int64_t i = 0; i < count; ++i) {
        double sum = x[i];
        size_t kept = 0;
        for (double part : parts) {
            if (std::abs(sum) < std::abs(part)) std::swap(sum, part);
            const double high = sum + part, low = part - (high - sum);
            if (low != 0.0) parts[kept++] = low;
            sum = high;
        }
        parts.resize(kept);
        parts.push_back(sum);
    }
    if (parts.empty()) return 0.0;
    double high = parts.back(), low = 0.0;
    parts.pop_back();
    while (!parts.empty() && low == 0.0) {
        const double more = parts.back(), before = high;
        parts.pop_back();
        high = before + more;
        low = more - (high - before);
    }
    // Half way between two numbers as far as `low` goes: the part below it says which is nearer.
    if (!parts.empty() && ((low < 0.0 && parts.back() < 0.0) || (low > 0.0 && parts.back() > 0.0))) {
        const double twice = 2.0 * low, other = high + twice;
        if (other - high == twice) high = other;
    }
    return high;
}

void Together::operator()() const {
    for (const auto& calls : calls_)
        if (!calls.empty()) {
            const DType same = static_cast<DType>(&calls - calls_);
            const FunctionOfMany run = calls[0].kernel->find_of_many(level(), same);
            run(calls.data(), static_cast<int64_t>(calls.size()));
        }
}

// The result's place is set when all are there: the vector moves.
void ClippedStep::measure_also(const Call& call, DType same) {
    squares_.add(call, same);
    totals_.push_back(0.0);
}

double ClippedStep::measure(double max_norm, const float* loss) {
    *scale_ = 1.0;
    if (loss && !std::isfinite(*loss)) return std::numeric_limits<double>::quiet_NaN();
    double* total = totals_.data();
    squares_.each([&](Call& call) { call.array[0] = Array{total++, {1}, {1}, 1, DType::f64}; });
    squares_();
    double norm = 0.0;
    for (double one : totals_) norm += one;  // finite only if all are
    if (!std::isfinite(norm)) return std::sqrt(norm);
    norm = std::sqrt(exact_sum(totals_.data(), static_cast<int64_t>(totals_.size())));
    *scale_ = std::min(1.0, max_norm / (norm + 1e-6));
    return norm;
}

double ClippedStep::operator()(double max_norm, const float* loss) {
    const StayAwake workers_spin_on;
    const double norm = measure(max_norm, loss);
    if (std::isfinite(norm)) update();
    return norm;
}

}  // namespace nn
