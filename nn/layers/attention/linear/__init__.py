"""Linear attention: a matrix of fixed size instead of a cache that grows.

S_t = decay_t S_{t−1} + k_t v_tᵀ,  o_t = scale S_tᵀ q_t  per head, S [Dk,Dv]."""
