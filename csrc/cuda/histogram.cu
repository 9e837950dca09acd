// features, slots, moments -> mean, table, magnitude; table -> terms

#include "cuda/launch.h"

namespace discfused::cuda {

void histogram(const HistogramCall& call, Stream stream) { run_histogram(call, Launch{stream}); }

void terms(const TermsCall& call, Stream stream) { run_terms(call, Launch{stream}); }

}  // namespace discfused::cuda
