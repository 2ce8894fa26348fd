#define VGLM_ISA_NAMESPACE avx2_vnni
#define VGLM_ISA_NAME "avx2_vnni"
#include "isa.inl"
