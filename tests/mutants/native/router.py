"""The router of a mixture of experts and its losses."""

from tests.mutants.native.workshop import Mutant

ROUTER = "kernels/router.cpp"

MUTANTS = [
    Mutant(ROUTER, "ties go to the highest index", "values[e] > values[best]",
           "values[e] >= values[best]", "router_topk"),
    Mutant(ROUTER, "weights are renormalised whatever was asked for", "if (renormalize)\n                for",
           "if (true)\n                for", "router_topk"),
    Mutant(ROUTER, "a NaN logit can be chosen", "z == z ? z : set(-INFINITY)",
           "z", "test_experts.py::test_ties_and_what_is_no_number"),
    Mutant(ROUTER, "the backward forgets the renormalisation",
           "renormalize ? dweights[r][i] - mean : dweights[r][i]",
           "dweights[r][i]", "router_topk_backward"),
    Mutant(ROUTER, "unchosen experts get no gradient", "renormalize ? Vec{} : -(get(probs[r] + i, n) * mean)",
           "Vec{}", "router_topk_backward"),
    Mutant(ROUTER, "the balance loss is not averaged over tokens", "total += mean / each * share;",
           "total += mean * share;", "moe_balance_loss"),
    Mutant(ROUTER, "the z-loss is the mean of lse", "(double)lse[r] * (double)lse[r]",
           "(double)lse[r]", "moe_z_loss"),
    Mutant(ROUTER, "the z-loss's slope misses its factor two", "(float)(2.0 * (double)dloss[0]",
           "(float)((double)dloss[0]", "moe_z_loss_backward"),
]
