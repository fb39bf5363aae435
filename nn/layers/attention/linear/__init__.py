"""Linear attention: a matrix of fixed size instead of a cache that grows.

Per head S [Dk,Dv] and o_t = S_tᵀ q_t / √Dk; the layers differ in how S goes on:
    kernelized.py    S_t = S_{t−1} + φ(k_t) v_tᵀ
    retention.py     S_t = γ S_{t−1} + k_t v_tᵀ
    gla.py           S_t = diag(e^{g_t}) S_{t−1} + k_t v_tᵀ
    delta.py         S_t = S_{t−1} + β_t k_t (v_t − S_{t−1}ᵀ k_t)ᵀ
    gated_delta.py   S̄ = e^{g_t} S_{t−1},  S_t = S̄ + β_t k_t (v_t − S̄ᵀ k_t)ᵀ
decayed.py, gla_core.py and delta_core.py have the cores, each as a recurrence and in chunks (nn/ops)."""
