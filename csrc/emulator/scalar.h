// The meaning of every scalar and packed instruction of PTX that is more than a C++ operator, as inline
// functions.
// Each translated module includes this through device.h, so it stays free of heavy headers.
#pragma once
#include "integer.h"
#include "floating.h"
#include "half.h"
#include "convert.h"
