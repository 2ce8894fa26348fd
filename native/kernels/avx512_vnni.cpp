#define VGLM_ISA_NAMESPACE avx512_vnni
#define VGLM_ISA_NAME "avx512_vnni"
#include "isa.inl"
