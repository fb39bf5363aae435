// Kernels and recordings without Python, for the checkers: every level, one thread and several, to the same
// bits. What the kernels compute is compared with float64 in tests/native/test_conformance.py.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "core/clipped_step.h"
#include "core/memory.h"
#include "core/record.h"
#include "core/threads.h"
#include "tests/calls.h"

namespace {

using nn::DType, test::Prepared, test::Tensor, test::types;

nn::Array flat(const Tensor& t) {
    nn::Array a = t.array();
    a.axes = 1, a.shape[0] = t.count, a.stride[0] = 1;
    return a;
}

// Runs `make`'s call with one thread and with several, on every level; results start as other bits each time.
template <class F>
void same_bits(std::vector<Tensor*> results, const F& make) {
    for (nn::Level level : nn::levels_here()) {
        CHECK(nn::use_level(nn::level_name(level)));
        std::vector<std::vector<char>> first;
        for (int threads : {1, 2, 5}) {
            nn::set_threads(threads);
            for (Tensor* t : results)
                std::memset(t->data.get(), 0x55 + threads, static_cast<size_t>(t->bytes()));
            make();
            for (size_t i = 0; i < results.size(); ++i) {
                const char* begin = results[i]->data.get();
                const std::vector<char> bits(begin, begin + results[i]->bytes());
                if (first.size() <= i) first.push_back(bits);
                CHECK(first[i] == bits);
            }
        }
    }
}

TEST(kernel_rms_norm) {
    for (DType T : types)
        for (auto [R, D] : {std::pair<int64_t, int64_t>{1, 1}, {3, 17}, {300, 130}, {0, 5}}) {
            Tensor y({R, D}, T), rstd({R, 1}), x({R, D}, T), w({D}, T, 3), sum({R, D}, T),
                other({R, D}, T, 5);
            same_bits({&y, &rstd}, [&] {
                Prepared("rms_norm", T, {y.array(), rstd.array(), x.array(), w.array()}, {1e-6})();
            });
            same_bits({&y, &sum, &rstd}, [&] {
                Prepared("rms_norm_residual", T,
                         {y.array(), sum.array(), rstd.array(), x.array(), other.array(), w.array()},
                         {1e-6})();
            });
            Tensor dx({R, D}, T), dw({D}), dy({R, D}, T, 7);
            same_bits({&dx, &dw}, [&] {
                Prepared(
                    "rms_norm_backward", T,
                    {dx.array(), dw.array(), dy.array(), x.array(), w.array(), rstd.array(), nn::Array{}})();
            });
        }
}

TEST(kernel_softmax_and_cross_entropy) {
    for (DType T : types)
        for (auto [R, V] : {std::pair<int64_t, int64_t>{2, 5}, {70, 1001}}) {
            Tensor y({R, V}, T), x({R, V}, T), dy({R, V}, T, 4);
            for (const char* name : {"softmax", "log_softmax"}) {
                same_bits({&y}, [&] { Prepared(name, T, {y.array(), x.array()})(); });
                same_bits({&x}, [&] {
                    Prepared((std::string(name) + "_backward").c_str(), T,
                             {x.array(), dy.array(), y.array()})();
                });
            }
            Tensor loss({R}), lse({R}), targets({R}, DType::i64), dloss({R}), logits({R, V}, T, 9);
            const std::vector<double> options = {-100, 0.1, 0.01, 5.0};
            same_bits({&loss, &lse}, [&] {
                Prepared("cross_entropy", T, {loss.array(), lse.array(), logits.array(), targets.array()},
                         options)();
            });
            same_bits({&y}, [&] {
                Prepared("cross_entropy_backward", T,
                         {y.array(), dloss.array(), logits.array(), targets.array(), lse.array()}, options)();
            });
        }
}

TEST(kernel_activation) {
    for (DType T : types)
        for (int64_t n : {1, 37, 100000}) {
            Tensor y({n}, T), z({n}, T), a({n}, T), b({n}, T, 2), c({n}, T, 3);
            same_bits({&y}, [&] { Prepared("swiglu", T, {flat(y), flat(a), flat(b)})(); });
            same_bits({&y, &z}, [&] {
                Prepared("swiglu_backward", T, {flat(y), flat(z), flat(c), flat(a), flat(b)})();
            });
        }
}

TEST(kernel_matrix_products) {
    const DType T = DType::bf16;
    for (auto [m, n, k] :
         {std::tuple<int64_t, int64_t, int64_t>{1, 7, 3}, {5, 33, 65}, {100, 270, 129}, {3, 4, 0}}) {
        Tensor y({m, n}, T), x({m, k}, T), w({n, k}, T, 2), bias({n}, T, 3);
        same_bits({&y}, [&] { Prepared("linear", T, {y.array(), x.array(), w.array(), bias.array()})(); });
        Tensor dx({m, k}, T), dw({n, k}), dy({m, n}, T, 6);
        same_bits({&dx, &dw}, [&] {
            Prepared("linear_backward", T, {dx.array(), dw.array(), dy.array(), x.array(), w.array()})();
        });
    }
    Tensor y({2, 300}), x({2, 77}), w({300, 77});
    same_bits({&y},
              [&] { Prepared("linear", DType::f32, {y.array(), x.array(), w.array(), nn::Array{}})(); });
}

// order, its inverse, and where experts begin, of pairs of which the last expert's are dropped
struct Routes {
    Tensor order, inverse, offsets;
    Routes(int64_t tokens, int64_t choices, int64_t experts)
        : order({tokens * choices}, DType::i64),
          inverse({tokens * choices}, DType::i64),
          offsets({experts + 1}, DType::i64) {
        Tensor chosen({tokens, choices}, DType::i64);
        int64_t* const e = reinterpret_cast<int64_t*>(chosen.data.get());
        for (int64_t i = 0; i < chosen.count; ++i) e[i] = i * i % (experts + 1);
        Prepared("expert_order", DType::f32,
                 {order.array(), inverse.array(), offsets.array(), chosen.array()},
                 {static_cast<double>(experts)})();
    }
};

TEST(kernel_experts) {
    for (DType T : types)
        for (auto [tokens, width, half] :
             {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {45, 33, 17}, {200, 70, 150}}) {
            constexpr int64_t experts = 3, choices = 2;
            const int64_t pairs = tokens * choices;
            Routes r(tokens, choices, experts);
            Tensor x({tokens, width}, T), up({experts, 2 * half, width}, T, 2),
                down({experts, width, half}, T, 3);
            Tensor y({pairs, half}, T), hidden({pairs, 2 * half}, T), ys({pairs, width}, T);
            for (double invariant : {1.0, 0.0})
                same_bits({&y, &hidden, &ys}, [&] {
                    Prepared("gathered_swiglu", T,
                             {y.array(), hidden.array(), x.array(), up.array(), r.offsets.array(),
                              r.order.array()},
                             {choices, invariant, 1})();
                    Prepared("grouped_linear", T, {ys.array(), y.array(), down.array(), r.offsets.array()},
                             {invariant})();
                });
            Tensor dys({pairs, width}, T, 5), dy({pairs, half}, T), ddown({experts, width, half});
            Tensor dx({tokens, width}, T), dup({experts, 2 * half, width});
            same_bits({&dy, &ddown, &dx, &dup}, [&] {
                Prepared(
                    "grouped_linear_backward", T,
                    {dy.array(), ddown.array(), dys.array(), y.array(), down.array(), r.offsets.array()})();
                Prepared("gathered_swiglu_backward", T,
                         {dx.array(), dup.array(), dy.array(), hidden.array(), x.array(), up.array(),
                          r.offsets.array(), r.order.array(), r.inverse.array()},
                         {choices})();
            });
        }
}

TEST(kernel_selective_scan) {
    for (DType T : types)
        for (auto [B, L, C, N, P] : std::vector<std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>>{
                 {2, 9, 131, 17, 2}, {1, 1, 3, 5, 1}, {1, 2, 65, 3, 4}, {2, 0, 3, 4, 1}}) {
            Tensor y({B, L, C}, T), last({B, C, N}), starts({B, P, N, C}), x({B, L, C}, T), delta({B, L, C});
            Tensor a({C, N}), b({B, L, N}, T), c({B, L, N}, T, 3), d({C}), h({B, C, N});
            const double parts = static_cast<double>(P);
            for (double keep : {0.0, 1.0})
                same_bits({&y, &last}, [&] {
                    Prepared("selective_scan", T,
                             {y.array(), last.array(), keep != 0.0 ? starts.array() : nn::Array{}, x.array(),
                              delta.array(), a.array(), b.array(), c.array(), d.array(), h.array()},
                             {parts, keep})();
                });
            Tensor dx({B, L, C}, T), ddelta({B, L, C}), da({C, N}), db({B, L, N}, T), dc({B, L, N}, T);
            Tensor dd({C}), dh({B, C, N}), dy({B, L, C}, T, 5);
            same_bits({&dx, &ddelta, &da, &db, &dc, &dd, &dh}, [&] {
                Prepared("selective_scan_backward", T,
                         {dx.array(), ddelta.array(), da.array(), db.array(), dc.array(), dd.array(),
                          dh.array(), dy.array(), last.array(), x.array(), delta.array(), a.array(),
                          b.array(), c.array(), d.array(), starts.array()})();
            });
        }
}

// Many tensors as one loop: each has the bits of its call alone, and none is moved where one is not finite.
TEST(clipped_step_of_many_tensors) {
    const std::vector<int64_t> sizes = {3, 0, 1, 4096, 40'001, 5, 4097};
    for (bool together : {true, false}) {
        std::vector<Tensor> all;
        for (int64_t size : sizes)
            for (int seed = 1; seed < 5; ++seed)
                all.emplace_back(std::vector<int64_t>{size}, size == 5 && seed == 2 ? DType::bf16 : DType::f32,
                                 seed);
        std::vector<Tensor*> changed;
        for (size_t i = 0; i < all.size(); i += 4) changed.insert(changed.end(), {&all[i], &all[i + 2]});
        double scale = 0.0;
        static std::map<nn::Level, double> norms;  // each level adds in its own order
        same_bits(changed, [&] {
            nn::ClippedStep step(&scale);
            std::vector<double> totals(sizes.size());
            for (size_t i = 0; i < all.size(); i += 4) {
                for (size_t j : {i, i + 2, i + 3})
                    for (int64_t e = 0; e < all[j].count; ++e) {
                        const float one = 0.5f;
                        std::memcpy(all[j].data.get() + 4 * e, &one, 4);
                    }
                const DType T = all[i + 1].dtype;
                Prepared squares("sum_of_squares", T,
                                 {nn::Array{&totals[i / 4], {1}, {1}, 1, DType::f64}, flat(all[i + 1])});
                Prepared adamw("adamw", T,
                               {flat(all[i]), flat(all[i + 1]), flat(all[i + 2]), flat(all[i + 3]), nn::Array{}},
                               {0.1, 0.9, 0.95, 1e-8, 0.1, 3.0, 1.0});
                adamw.call.number[6].at = &scale;
                step.measure_also(squares.call, T);
                step.update_also(adamw.call, T);
                if (!together) {
                    squares();
                    scale = std::min(1.0, 0.25 / (norms[nn::level()] + 1e-6));
                    adamw();
                }
            }
            if (!together) {
                const double sum = nn::exact_sum(totals.data(), static_cast<int64_t>(totals.size()));
                CHECK(std::sqrt(sum) == norms[nn::level()]);
                return;
            }
            const float loss = NAN;
            CHECK(std::isnan(step(0.25, &loss)));
            const double norm = step(0.25, nullptr);
            CHECK(norm > 0.25 && scale == 0.25 / (norm + 1e-6));
            norms[nn::level()] = norm;
        });
        static std::vector<std::vector<char>> first;
        for (size_t i = 0; i < changed.size(); ++i) {
            const char* begin = changed[i]->data.get();
            const std::vector<char> bits(begin, begin + changed[i]->bytes());
            if (together) first.push_back(bits);
            CHECK(first[i] == bits);
        }
    }
}

TEST(kernel_adamw_and_squares) {
    for (DType T : types) {
        Tensor p({50001}), g({50001}, T), m({50001}), v({50001});
        for (nn::Level level : nn::levels_here()) {
            CHECK(nn::use_level(nn::level_name(level)));
            Prepared("adamw", T, {flat(p), flat(g), flat(m), flat(v), nn::Array{}},
                     {1e-3, 0.9, 0.95, 1e-8, 0.1, 3, 1})();
        }
        double total = 0;
        std::vector<double> found;
        for (int threads : {1, 4}) {
            nn::set_threads(threads);
            Prepared("sum_of_squares", T, {nn::Array{&total, {1}, {1}, 1, DType::f64}, flat(g)})();
            found.push_back(total);
        }
        CHECK(found[0] == found[1] && found[0] > 0);
    }
}

TEST(kernel_embedding) {
    for (DType T : types)
        for (auto [N, V, D] : {std::tuple<int64_t, int64_t, int64_t>{0, 5, 3}, {1, 5, 1}, {3000, 5, 130}}) {
            Tensor y({N, D}, T), weight({V, D}, T), ids({N}, DType::i64), out({V, D});
            same_bits({&y}, [&] { Prepared("embedding", T, {y.array(), weight.array(), ids.array()})(); });
            same_bits({&out}, [&] {
                Prepared("scatter_add", T, {out.array(), y.array(), ids.array()}, {(double)V})();
            });
        }
}

// A chain as the module records it: buffers from the pool, freed as soon as they are read.
struct Chain {
    nn::Recording recording;
    std::set<void*> mine;

    nn::Array make(std::vector<int64_t> shape) {
        Tensor like(shape);
        nn::Array a = like.array();
        a.data = nn::pool_take(static_cast<size_t>(like.bytes()));
        recording.allocated(a.data, like.bytes());
        mine.insert(a.data);
        return a;
    }
    ~Chain() {
        for (void* data : mine) nn::pool_give(data);
    }
    void give(const nn::Array& a) {
        mine.erase(a.data);
        recording.freed(a.data);
        nn::pool_give(a.data);
    }
    std::string run(const Prepared& one) {
        const std::string why = recording.before(one.call);
        if (!why.empty()) return why;
        one();
        recording.add(one.call, one.run);
        return "";
    }
};

TEST(recording_replays_and_shares_memory) {
    nn::set_threads(3);
    Tensor x({64, 96}), w({96});
    Chain chain;
    chain.recording.declare(x.data.get(), x.bytes());
    chain.recording.declare(w.data.get(), w.bytes());
    nn::Array now = x.array();
    for (int i = 0; i < 6; ++i) {
        const nn::Array y = chain.make({64, 96}), rstd = chain.make({64, 1}), z = chain.make({64, 96});
        CHECK(chain.run(Prepared("rms_norm", DType::f32, {y, rstd, now, w.array()}, {1e-6})).empty());
        CHECK(chain.run(Prepared("softmax", DType::f32, {z, y})).empty());
        if (i) chain.give(now);
        chain.give(y);
        chain.give(rstd);
        now = z;
    }
    CHECK(chain.recording.finish().empty());
    CHECK(chain.recording.calls() == 12);
    const int64_t one = 64 * 96 * 4;
    CHECK(chain.recording.arena_bytes() >= 2 * one && chain.recording.arena_bytes() < 3 * one);
    std::vector<char> first(static_cast<char*>(now.data), static_cast<char*>(now.data) + one);
    chain.recording.replay();
    CHECK(std::memcmp(first.data(), now.data, first.size()) == 0);
    for (int64_t i = 0; i < x.count; ++i) x.set(i, 8);
    chain.recording.replay();
    CHECK(std::memcmp(first.data(), now.data, first.size()) != 0);
}

TEST(recording_refuses_what_it_does_not_know) {
    Tensor x({4, 8}), w({8}), stranger({4, 8});
    Chain chain;
    chain.recording.declare(x.data.get(), x.bytes());
    const nn::Array y = chain.make({4, 8}), z = chain.make({4, 8});
    CHECK(chain.run(Prepared("softmax", DType::f32, {y, stranger.array()})).find("x is neither") == 0);
    CHECK(chain.run(Prepared("softmax", DType::f32, {y, z})).find("x is neither") == 0);  // made by nobody
    Prepared counted("rms_norm", DType::f32, {y, chain.make({4, 1}), x.array(), x.array()});
    double eps = 1e-6;
    counted.call.number[0].at = &eps;
    CHECK(chain.recording.before(counted.call).find("eps is read") == 0);
}

TEST(recording_finds_what_changed_between_kernels) {
    Tensor x({4, 8});
    Chain chain;
    chain.recording.declare(x.data.get(), x.bytes());
    const nn::Array y = chain.make({4, 8}), z = chain.make({4, 8});
    CHECK(chain.run(Prepared("softmax", DType::f32, {y, x.array()})).empty());
    static_cast<float*>(y.data)[3] += 1.0f;  // behind its back
    CHECK(chain.run(Prepared("softmax", DType::f32, {z, y})).empty());
    chain.give(y);
    CHECK(chain.recording.finish().find("the replay gave 1 of 1 results otherwise") == 0);
}

TEST(recording_puts_back_what_was_changed_in_place) {
    Tensor p({100}), g({100}), m({100}), v({100});
    for (int64_t i = 0; i < 100; ++i) reinterpret_cast<float*>(v.data.get())[i] = 1.0f;
    Chain chain;
    for (Tensor* t : {&p, &g, &m, &v}) chain.recording.declare(t->data.get(), t->bytes());
    double step = 1;
    chain.recording.declare(&step, sizeof step);
    Prepared adamw("adamw", DType::f32, {flat(p), flat(g), flat(m), flat(v), nn::Array{}},
                   {1e-2, 0.9, 0.95, 1e-8, 0.1, 1, 1});
    adamw.call.number[5].at = &step;
    CHECK(chain.run(adamw).empty());
    const std::vector<char> once(p.data.get(), p.data.get() + p.bytes());
    CHECK(chain.recording.finish().empty());
    CHECK(std::memcmp(once.data(), p.data.get(), once.size()) == 0);
    step = 2;
    chain.recording.replay();
    CHECK(std::memcmp(once.data(), p.data.get(), once.size()) != 0);
}

}  // namespace
