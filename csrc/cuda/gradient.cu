// features, table, terms -> d loss / d features

#include "cuda/launch.h"

namespace discfused::cuda {

void gradient(const GradientCall& call, Stream stream) { run_gradient(call, Launch{stream}); }

}  // namespace discfused::cuda
