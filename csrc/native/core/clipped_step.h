// An optimizer's step over all tensors: one loop for the norm of all gradients, one for the update, which
// reads the clip factor from memory.
//
//     ClippedStep step(&scale);         for every tensor  measure_also(sum_of_squares), update_also(adamw)
//     step.measure(max_norm, &loss);    norm = sqrt(sum of squares); scale = min(1, max_norm/(norm + 1e-6))
//     step.update();                    whose calls read the scale
//
// The outer sum is exact, rounded once, as Python's math.fsum: the norm does not depend on the tensors' order,
// nor on who adds.  What the calls touch stays as long as the step: the caller's care.
#pragma once
#include <vector>

#include "core/registry.h"

namespace nn {

double exact_sum(const double* x, int64_t count);  // of finite numbers whose sums are finite

// Calls of one kernel that are made together; it has to have been written for that (NN_KERNEL_OF_MANY).
class Together {
  public:
    void add(const Call& call, DType same) { calls_[static_cast<int>(same)].push_back(call); }
    void operator()() const;
    template <class F>
    void each(const F& f) {
        for (auto& calls : calls_)
            for (Call& call : calls) f(call);
    }

  private:
    std::vector<Call> calls_[dtype_count];
};

class ClippedStep {
  public:
    explicit ClippedStep(double* scale) : scale_(scale) {}
    void measure_also(const Call& call, DType same);
    void update_also(const Call& call, DType same) { updates_.add(call, same); }

    // The norm of all gradients; NaN if a loss is given that is not finite.
    double measure(double max_norm, const float* loss);
    void update() const { updates_(); }
    // Both, but the update only where the norm is finite.
    double operator()(double max_norm, const float* loss);

  private:
    Together squares_, updates_;
    std::vector<double> totals_;
    double* scale_;
};

}  // namespace nn
