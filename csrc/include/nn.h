// The C ABI of cuda-nn's kernel library: one documented declaration per exported function, by family.
//
// Every function returns 0 (NN_OK) or an error code, and never throws, exits or prints.  Destinations come
// first, then inputs, sizes, options, and the stream.  Arrays are pointers to device memory, row-major and
// dense unless strides are given; sizes and offsets count elements and are 64-bit.  A function with a `stream`
// only queues work on it: it allocates nothing, waits for nothing and reads no device memory on the host, so
// that every one can be captured in a graph.  Whatever changes from step to step is read from device memory.
#pragma once

#include "nn/types.h"

#include "nn/runtime.h"
#include "nn/array.h"
#include "nn/attention.h"
#include "nn/attention_backward.h"
#include "nn/gemm.h"
#include "nn/moe.h"
#include "nn/norm.h"
#include "nn/router.h"
#include "nn/softmax.h"
#include "nn/elementwise.h"
#include "nn/sampling.h"
#include "nn/rope.h"
#include "nn/optimizer.h"
#include "nn/loss.h"
