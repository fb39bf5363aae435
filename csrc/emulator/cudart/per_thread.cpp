// The entry points of programs built with --default-stream per-thread: the same functions, where the null
// stream means the calling thread's own.  (nvcc renames calls: cudaMemcpy to cudaMemcpy_ptds, cudaMemcpyAsync
// to cudaMemcpyAsync_ptsz.)
#include "call.h"

using emu::cudart::PerThreadScope;

// One line per function instead of one body: a name, its parameters, their names.
#define PER_THREAD(function, suffix, parameters, names)              \
    extern "C" cudaError_t CUDARTAPI function##suffix parameters {   \
        PerThreadScope scope;                                        \
        return function names;                                       \
    }

using Kind = cudaMemcpyKind;
using Stream = cudaStream_t;
using Graph = cudaGraph_t;
using Exec = cudaGraphExec_t;
using Node = cudaGraphNode_t;
using Edges = const cudaGraphEdgeData*;

PER_THREAD(cudaMemcpy, _ptds, (void* d, const void* s, size_t n, Kind k), (d, s, n, k))
PER_THREAD(cudaMemcpyToSymbol, _ptds, (const void* d, const void* s, size_t n, size_t o, Kind k),
           (d, s, n, o, k))
PER_THREAD(cudaMemcpyFromSymbol, _ptds, (void* d, const void* s, size_t n, size_t o, Kind k), (d, s, n, o, k))
PER_THREAD(cudaMemcpy2D, _ptds, (void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, Kind k),
           (d, dp, s, sp, w, h, k))
PER_THREAD(cudaMemcpy3D, _ptds, (const cudaMemcpy3DParms* p), (p))
PER_THREAD(cudaMemcpy3DPeer, _ptds, (const cudaMemcpy3DPeerParms* p), (p))
PER_THREAD(cudaMemset, _ptds, (void* d, int v, size_t n), (d, v, n))
PER_THREAD(cudaMemset2D, _ptds, (void* d, size_t p, int v, size_t w, size_t h), (d, p, v, w, h))
PER_THREAD(cudaMemset3D, _ptds, (cudaPitchedPtr p, int v, cudaExtent e), (p, v, e))

PER_THREAD(cudaMemcpyAsync, _ptsz, (void* d, const void* s, size_t n, Kind k, Stream st), (d, s, n, k, st))
PER_THREAD(cudaMemcpyToSymbolAsync, _ptsz,
           (const void* d, const void* s, size_t n, size_t o, Kind k, Stream st), (d, s, n, o, k, st))
PER_THREAD(cudaMemcpyFromSymbolAsync, _ptsz, (void* d, const void* s, size_t n, size_t o, Kind k, Stream st),
           (d, s, n, o, k, st))
PER_THREAD(cudaMemcpy2DAsync, _ptsz,
           (void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, Kind k, Stream st),
           (d, dp, s, sp, w, h, k, st))
PER_THREAD(cudaMemcpy3DAsync, _ptsz, (const cudaMemcpy3DParms* p, Stream st), (p, st))
PER_THREAD(cudaMemcpy3DPeerAsync, _ptsz, (const cudaMemcpy3DPeerParms* p, Stream st), (p, st))
PER_THREAD(cudaMemcpyBatchAsync, _ptsz,
           (void* const* d, const void* const* s, const size_t* n, size_t c, cudaMemcpyAttributes* a,
            size_t* i, size_t m, Stream st),
           (d, s, n, c, a, i, m, st))
PER_THREAD(cudaMemsetAsync, _ptsz, (void* d, int v, size_t n, Stream st), (d, v, n, st))
PER_THREAD(cudaMemset2DAsync, _ptsz, (void* d, size_t p, int v, size_t w, size_t h, Stream st),
           (d, p, v, w, h, st))
PER_THREAD(cudaMemset3DAsync, _ptsz, (cudaPitchedPtr p, int v, cudaExtent e, Stream st), (p, v, e, st))
PER_THREAD(cudaMallocAsync, _ptsz, (void** p, size_t n, Stream st), (p, n, st))
PER_THREAD(cudaMallocFromPoolAsync, _ptsz, (void** p, size_t n, cudaMemPool_t m, Stream st), (p, n, m, st))
PER_THREAD(cudaFreeAsync, _ptsz, (void* p, Stream st), (p, st))
PER_THREAD(cudaMemPrefetchAsync, _ptsz, (const void* p, size_t n, cudaMemLocation l, unsigned f, Stream st),
           (p, n, l, f, st))

PER_THREAD(cudaLaunchKernel, _ptsz, (const void* f, dim3 g, dim3 b, void** a, size_t n, Stream st),
           (f, g, b, a, n, st))
PER_THREAD(cudaLaunchCooperativeKernel, _ptsz, (const void* f, dim3 g, dim3 b, void** a, size_t n, Stream st),
           (f, g, b, a, n, st))
PER_THREAD(cudaLaunchKernelExC, _ptsz, (const cudaLaunchConfig_t* c, const void* f, void** a), (c, f, a))
PER_THREAD(cudaLaunchHostFunc, _ptsz, (Stream st, cudaHostFn_t f, void* d), (st, f, d))

PER_THREAD(cudaStreamQuery, _ptsz, (Stream st), (st))
PER_THREAD(cudaStreamSynchronize, _ptsz, (Stream st), (st))
PER_THREAD(cudaStreamGetDevice, _ptsz, (Stream st, int* d), (st, d))
PER_THREAD(cudaStreamGetFlags, _ptsz, (Stream st, unsigned* f), (st, f))
PER_THREAD(cudaStreamGetId, _ptsz, (Stream st, unsigned long long* i), (st, i))
PER_THREAD(cudaStreamGetPriority, _ptsz, (Stream st, int* p), (st, p))
PER_THREAD(cudaStreamAddCallback, _ptsz, (Stream st, cudaStreamCallback_t f, void* d, unsigned flags),
           (st, f, d, flags))
PER_THREAD(cudaStreamAttachMemAsync, _ptsz, (Stream st, void* p, size_t n, unsigned f), (st, p, n, f))
PER_THREAD(cudaStreamCopyAttributes, _ptsz, (Stream d, Stream s), (d, s))
PER_THREAD(cudaStreamGetAttribute, _ptsz, (Stream st, cudaStreamAttrID a, cudaStreamAttrValue* v), (st, a, v))
PER_THREAD(cudaStreamSetAttribute, _ptsz, (Stream st, cudaStreamAttrID a, const cudaStreamAttrValue* v),
           (st, a, v))
PER_THREAD(cudaStreamWaitEvent, _ptsz, (Stream st, cudaEvent_t e, unsigned f), (st, e, f))
PER_THREAD(cudaEventRecord, _ptsz, (cudaEvent_t e, Stream st), (e, st))
PER_THREAD(cudaEventRecordWithFlags, _ptsz, (cudaEvent_t e, Stream st, unsigned f), (e, st, f))

PER_THREAD(cudaStreamBeginCapture, _ptsz, (Stream st, cudaStreamCaptureMode m), (st, m))
PER_THREAD(cudaStreamBeginCaptureToGraph, _ptsz,
           (Stream st, Graph g, const Node* d, Edges e, size_t n, cudaStreamCaptureMode m),
           (st, g, d, e, n, m))
PER_THREAD(cudaStreamEndCapture, _ptsz, (Stream st, Graph* g), (st, g))
PER_THREAD(cudaStreamIsCapturing, _ptsz, (Stream st, cudaStreamCaptureStatus* s), (st, s))
PER_THREAD(cudaStreamGetCaptureInfo, _ptsz,
           (Stream st, cudaStreamCaptureStatus* s, unsigned long long* i, Graph* g, const Node** d,
            const cudaGraphEdgeData** e, size_t* n),
           (st, s, i, g, d, e, n))
PER_THREAD(cudaStreamUpdateCaptureDependencies, _ptsz, (Stream st, Node* d, Edges e, size_t n, unsigned f),
           (st, d, e, n, f))
PER_THREAD(cudaGraphInstantiateWithParams, _ptsz, (Exec * x, Graph g, cudaGraphInstantiateParams* p),
           (x, g, p))
PER_THREAD(cudaGraphUpload, _ptsz, (Exec x, Stream st), (x, st))
PER_THREAD(cudaGraphLaunch, _ptsz, (Exec x, Stream st), (x, st))

PER_THREAD(cudaGetDriverEntryPointByVersion, _ptsz,
           (const char* n, void** f, unsigned v, unsigned long long o, cudaDriverEntryPointQueryResult* r),
           (n, f, v, o, r))

extern "C" cudaError_t CUDARTAPI cudaGetDriverEntryPoint_ptsz(const char* name, void** function,
                                                              unsigned long long flags,
                                                              cudaDriverEntryPointQueryResult* result) {
    return cudaGetDriverEntryPointByVersion(name, function, CUDART_VERSION, flags, result);
}
