// What the losses check alike.
#pragma once

#include "device/arguments.h"

namespace nn {

inline int check_loss(float label_smoothing, float z_loss, float softcap) {
    NN_REQUIRE(label_smoothing >= 0 && label_smoothing < 1, "label_smoothing: %g is not in [0, 1)",
               label_smoothing);
    NN_REQUIRE(z_loss >= 0, "z_loss: %g is negative or no number", z_loss);
    NN_REQUIRE(softcap >= 0, "softcap: %g is negative or no number", softcap);
    return NN_OK;
}

}  // namespace nn
