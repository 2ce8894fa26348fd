#define VGLM_ISA_NAMESPACE portable
#define VGLM_ISA_NAME "portable"
#include "isa.inl"
