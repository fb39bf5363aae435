"""Errors planted in the programs of corpus.py, one at a time, and where each must be reported.

A fault replaces one piece of a program's source.  `at` is text of the line that the report must name; a
race's other side, where it is another line, is `other` (either side may be the one reported).  Kind
"numbers" is a fault that only the answer shows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One planted error."""

    program: str
    about: str
    old: str
    new: str
    kind: str                    # several kinds may be right: "deadlock|collective"
    at: str = ""
    other: str = ""
    nth: int = 1                 # which occurrence of `old`

    @property
    def name(self) -> str:
        """For the test's title."""
        return f"{self.program}: {self.about}"

    def plant(self, source: str) -> str:
        """The source with the error in it, and not a line more or less."""
        parts = source.split(self.old)
        assert len(parts) > self.nth, f"{self.name}: {self.old!r} is not in the source {self.nth} times"
        return self.old.join(parts[: self.nth]) + self.new + self.old.join(parts[self.nth :])


BARRIER = "__syncthreads();"
# An asm statement's line is its last.
LDMATRIX = '"r"(shared_address(row))'
WGMMA = ': "l"(a), "l"(b));'
FAULTS = [
    Fault("reduce", "no barrier before the tree", BARRIER, "", "race", "+= tree[", "= sum;"),
    Fault("reduce", "no barrier in the tree", BARRIER, "", "race", "+= tree[", nth=2),
    Fault("reduce", "tree too small", "tree[THREADS]", "tree[THREADS - 32]", "out_of_bounds", "= sum;"),
    Fault("reduce", "mask of half a warp", "0xffffffffu", "0x0000ffffu", "collective", "__shfl_down_sync"),
    Fault("reduce", "reads one past the end", "i < n", "i <= n", "out_of_bounds", "sum += x[i]"),
    Fault("reduce", "shuffle names absent lanes", "threadIdx.x < 32", "threadIdx.x < 24", "collective",
          "__shfl"),
    Fault("reduce", "tree not filled", "tree[threadIdx.x] = sum;",
          "if (threadIdx.x < 200) tree[threadIdx.x] = sum;",
          "uninitialized", "+= tree["),
    Fault("reduce", "writes past the results", "partial[blockIdx.x]", "partial[blockIdx.x + 1]",
          "out_of_bounds", "= value;"),
    Fault("reduce", "all lanes write", "if (threadIdx.x == 0) partial", "partial", "race", "= value;"),
    Fault("scan", "no barrier in the loop", BARRIER, "", "race", "buffer[", nth=2),
    Fault("scan", "no barrier before the loop", BARRIER, "", "race", "+= buffer[", "= x[row"),
    Fault("scan", "one buffer instead of two", "buffer[1 - from][threadIdx.x] = value",
          "buffer[from][threadIdx.x] = value", "race", "= value;", "+= buffer["),
    Fault("scan", "reads below the buffer", "if (threadIdx.x >= step) value", "value", "out_of_bounds",
          "+= buffer["),
    Fault("scan", "writes the next row", "out[row * N", "out[(row + 1) * N", "out_of_bounds", "out[(row"),
    Fault("scan", "barrier in a branch", "value += buffer[from][threadIdx.x - step];",
          "{ value += buffer[from][threadIdx.x - step]; __syncthreads(); }", "divergence", BARRIER),
    Fault("histogram", "no barrier after clearing", BARRIER, "", "race", "atomicAdd(&local", "= 0;"),
    Fault("histogram", "no barrier before adding up", BARRIER, "", "race", "!= 0", "atomicAdd(&local", nth=2),
    Fault("histogram", "counts without atomics", "atomicAdd(&local[data[i]], 1u)", "local[data[i]] += 1u",
          "race", "+= 1u"),
    Fault("histogram", "half the bins cleared", "bin < BINS; bin += blockDim.x) local[bin] = 0",
          "bin < BINS / 2; bin += blockDim.x) local[bin] = 0", "uninitialized", "atomicAdd(&local"),
    Fault("histogram", "adds up without atomics", "atomicAdd(&bins[bin], local[bin])",
          "bins[bin] += local[bin]",
          "race", "bins[bin] +="),
    Fault("histogram", "half the bins", "local[BINS]", "local[BINS / 2]", "out_of_bounds", "= 0;"),
    Fault("transpose", "no barrier", BARRIER, "", "race", "out[(r", "= x[(r"),
    Fault("transpose", "reads past the last column", "c < cols && r + j < rows", "r + j < rows",
          "out_of_bounds", "= x[(r"),
    Fault("transpose", "writes past the last row", "c < rows && r + j < cols", "c < rows", "out_of_bounds",
          "out[(r"),
    Fault("transpose", "tile not turned", "tile[threadIdx.x][threadIdx.y + j]",
          "tile[threadIdx.y + j][threadIdx.x]",
          "numbers|uninitialized"),
    Fault("transpose", "last row not loaded", "r + j < rows", "r + j < rows - 1", "uninitialized", "out[(r"),
    Fault("transpose", "tile one row short", "tile[TILE]", "tile[TILE - 1]", "out_of_bounds", "= x[(r"),
    Fault("gemm", "no barrier after loading", BARRIER, "", "race", "sum +=", "? "),
    Fault("gemm", "no barrier before loading again", BARRIER, "", "race", "? ", "sum +=", nth=2),
    Fault("gemm", "reads past a row's end", "row < m && at + threadIdx.x < k", "row < m", "out_of_bounds",
          "? a["),
    Fault("gemm", "writes past a row's end", "row < m && col < n) c", "row < m) c", "race|out_of_bounds",
          "= sum;"),
    Fault("gemm", "tile turned", "tile_b[i][threadIdx.x]", "tile_b[threadIdx.x][i]", "numbers"),
    Fault("gemm", "barrier for some rows only", BARRIER, "if (row < m) __syncthreads();", "divergence",
          BARRIER),
    Fault("softmax", "scratch used again too soon", BARRIER, "", "race", "scratch[threadIdx.x / 32] = value",
          "scratch[", nth=2),
    Fault("softmax", "no barrier before combining", BARRIER, "", "race", "scratch[", "= value"),
    Fault("softmax", "scratch one short", "scratch[THREADS / 32]", "scratch[THREADS / 32 - 1]",
          "out_of_bounds", "scratch[threadIdx.x / 32]"),
    Fault("softmax", "one warp writes its part", "threadIdx.x % 32 == 0", "threadIdx.x == 0",
          "uninitialized", "scratch[warp]"),
    Fault("softmax", "a lane leaves early", "float largest =",
          "if (threadIdx.x % 32 == 31) return; float largest =",
          "collective", "__shfl_xor_sync"),
    Fault("flash_attention", "no barrier after loading", BARRIER, "", "race", "tile_", "? "),
    Fault("flash_attention", "no barrier before loading again", BARRIER, "", "race", "? ", "tile_", nth=2),
    Fault("flash_attention", "reads past the last key", "inside = first + i / D < t", "inside = true",
          "out_of_bounds", "? k["),
    Fault("flash_attention", "threads leave before loading", "float mine[D]",
          "if (query >= t) return; float mine[D]",
          "uninitialized", "score += mine"),
    Fault("flash_attention", "writes past the last query", "if (query < t)\n        for",
          "if (true)\n        for",
          "out_of_bounds", "= sum[d] / total"),
    Fault("ticket", "no fence before the ticket", "__threadfence();", "", "race", "all += partial",
          "partial[blockIdx"),
    Fault("ticket", "ticket without an atomic", "atomicAdd(tickets, 1u)", "(*tickets)++", "race",
          "(*tickets)++"),
    Fault("ticket", "no barrier before the verdict", BARRIER, "", "race", "if (last", "last =", nth=2),
    Fault("ticket", "no barrier before summing", BARRIER, "", "race", "sum += tree", "= sum;"),
    Fault("ticket", "every block adds up", "if (last && threadIdx.x == 0)", "if (threadIdx.x == 0)",
          "race", "all", "all"),
    Fault("producer_consumer", "does not wait for an empty buffer", "if (i >= 2) wait_for(EMPTY + i % 2);",
          "",
          "race|deadlock", "= x[i|bar.sync"),
    Fault("producer_consumer", "waits on the wrong barrier", "wait_for(FULL + i % 2)", "wait_for(FULL)",
          "deadlock", "bar.sync"),
    Fault("producer_consumer", "arrives for half", "bar.arrive %0, 64", "bar.arrive %0, 32",
          "collective|deadlock|race", "bar."),
    Fault("producer_consumer", "count is not whole warps", "bar.sync %0, 64", "bar.sync %0, 48",
          "divergence", "bar.sync"),
    Fault("double_buffer", "waits for too little", "wait_prior(1)", "wait_prior(2)", "async", "now["),
    Fault("double_buffer", "never waits", "__pipeline_wait_prior(1);", "", "async", "now["),
    Fault("double_buffer", "no barrier after waiting", BARRIER, "", "race|async", "now[",
          "__pipeline_memcpy_async"),
    Fault("double_buffer", "fills a buffer still in use", BARRIER, "", "race|async",
          "__pipeline_memcpy_async", "now[",
          nth=2),
    Fault("double_buffer", "misaligned copy", "&x[at], 16", "&x[at + 1], 16", "misaligned", "&x[at + 1]"),
    Fault("double_buffer", "one buffer", "buffer[2][WIDTH]", "buffer[1][WIDTH]", "out_of_bounds",
          "memcpy_async"),
    Fault("bitonic_sort", "no barrier between steps", BARRIER, "", "race", "row[", nth=2),
    Fault("bitonic_sort", "no barrier after loading", BARRIER, "", "race", "row[", "= mine[i]"),
    Fault("bitonic_sort", "both partners swap", "partner > i &&", "", "race|out_of_bounds", "row["),
    Fault("bitonic_sort", "one past the dynamic memory", "row[i] = mine[i]", "row[i + 1] = mine[i]",
          "out_of_bounds", "= mine[i]"),
    Fault("stencil", "no barrier", BARRIER, "", "race", "line[at + j]", "line[at"),
    Fault("stencil", "line too short", "2 * RADIUS];\n    int", "RADIUS];\n    int", "out_of_bounds",
          "line[at"),
    Fault("stencil", "right halo missing", "line[at + THREADS] = i + THREADS < n ? x[i + THREADS] : 0;", "",
          "uninitialized", "line[at + j]"),
    Fault("stencil", "left halo unchecked", "i >= RADIUS ? x[i - RADIUS] : 0", "x[i - RADIUS]",
          "out_of_bounds", "x[i - RADIUS]"),
    Fault("stencil", "one weight too far", "weights[j + RADIUS]", "weights[j + RADIUS + 1]",
          "out_of_bounds", "weights[j"),
    Fault("warps", "no __syncwarp", "__syncwarp();", "", "race", "= tile[warp]", "] = x["),
    Fault("warps", "__syncwarp of half the warp", "__syncwarp()", "__syncwarp(0x0000ffffu)",
          "collective", "__syncwarp"),
    Fault("warps", "ballot in a branch", "unsigned kept = __ballot_sync(0xffffffffu, value > 0);",
          "unsigned kept = 0; if (value > 0) kept = __ballot_sync(0xffffffffu, true); __syncwarp();",
          "collective", "__ballot_sync"),
    Fault("warps", "match without one of its lanes", "__match_any_sync(active",
          "__match_any_sync(active & ~8u",
          "collective", "__match_any_sync"),
    Fault("warps", "shuffle names the other half", "0x0000ffffu", "0xffff0000u", "collective",
          "__shfl_down_sync"),
    Fault("warps", "shuffle from outside the mask", "value, step, 16", "value, step + 8", "collective",
          "__shfl_down"),
    Fault("warps", "counts without atomics", "atomicAdd(&bins[keys[i]], (unsigned)__popc(same))",
          "bins[keys[i]] += __popc(same)", "race", "bins[keys[i]] +="),
    Fault("warps", "two lanes write one place", "(1u << lane) - 1)", "7)", "race", "= value;"),
    Fault("gather", "misaligned vector", "table[index[blockIdx.x * count + i] * width + column]",
          "*(const float4*)((const float*)&table[index[blockIdx.x * count + i] * width + column] + 1)",
          "misaligned", "float4 row"),
    Fault("gather", "column unchecked", "if (column >= width) return;", "", "out_of_bounds|race",
          "out[blockIdx|float4 row"),
    Fault("gather", "index past its end", "count + i]", "count + i + 1]", "out_of_bounds", "float4 row"),
    Fault("mma_gemm", "leaves both copies in flight", "wait_group 1", "wait_group 2", "async",
          LDMATRIX, "cp.async.cg"),
    Fault("mma_gemm", "no barrier before use", BARRIER, "", "race", LDMATRIX, "cp.async.cg"),
    Fault("mma_gemm", "no barrier before refilling", BARRIER, "", "race", "cp.async.cg", LDMATRIX, nth=2),
    Fault("mma_gemm", "B not transposed", ".trans", "", "numbers"),
    Fault("mma_gemm", "registers of A exchanged", '"r"(a[0]), "r"(a[1])', '"r"(a[1]), "r"(a[0])', "numbers"),
    Fault("mma_gemm", "row not aligned", "[inner + half]", "[inner + half / 2]", "misaligned",
          LDMATRIX),
    Fault("wmma_gemm", "B read as columns", "half, wmma::row_major> right", "half, wmma::col_major> right",
          "numbers|out_of_bounds", "(right"),
    Fault("wmma_gemm", "only half the warp multiplies", "wmma::mma_sync(",
          "if (threadIdx.x < 16) wmma::mma_sync(",
          "collective", "mma_sync|load_matrix_sync(left"),
    Fault("wgmma_gemm", "stores not shown to the tensor core", "        show_to_tensor_core();", "", "async",
          WGMMA, "tile[row]"),
    Fault("wgmma_gemm", "no barrier before use", BARRIER, "", "race", WGMMA, "tile[row]"),
    Fault("wgmma_gemm", "leaves both groups in flight", "wait_group.sync.aligned 1",
          "wait_group.sync.aligned 2",
          "async", "tile[row]", WGMMA),
    Fault("wgmma_gemm", "result used without the last wait", "    finish_all();", "", "async", WGMMA),
    Fault("wgmma_gemm", "no fence", "        open();", "", "async", WGMMA),
    Fault("wgmma_gemm", "nothing committed", "        commit();", "", "async", WGMMA),
    Fault("wgmma_gemm", "swizzle forgotten", "chunk ^ row % 8", "chunk", "numbers"),
]
