// Body of one instruction set's translation unit: defines its table of kernels.
// The unit defines VGLM_ISA_NAMESPACE and VGLM_ISA_NAME, and is compiled with exactly that set's flags.
#include "../kernels.hpp"
#include "../simd.hpp"

#define VGLM_PREFETCH 4096  // bytes ahead in a stream of weights

#include "rows.inl"
#include "matmul.inl"
#ifdef VGLM_AMX
#include "matmul_amx.inl"
#endif
#include "attention.inl"
#ifdef VGLM_AMX
#include "attention_amx.inl"
#endif
#include "messages.inl"
#include "peak.inl"

namespace vglm::VGLM_ISA_NAMESPACE {

extern const Kernels table;
const Kernels table = {VGLM_ISA_NAME, matmul,  normalize, convert_f32,     convert_bf16, add_normalized,
                       rmsnorm,       rope,    rotate,    f32_to_bf16,     bf16_to_f32_row, store_kv,
                       attend,        merge,   divide,    mix_messages,    score_states, spin,
                       read};

}  // namespace
