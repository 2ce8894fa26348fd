#define VGLM_ISA_NAMESPACE avx2
#define VGLM_ISA_NAME "avx2"
#include "isa.inl"
