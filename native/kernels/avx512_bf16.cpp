#define VGLM_ISA_NAMESPACE avx512_bf16
#define VGLM_ISA_NAME "avx512_bf16"
#include "isa.inl"
