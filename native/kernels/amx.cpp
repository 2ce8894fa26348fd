#include <immintrin.h>
#define VGLM_AMX
#define VGLM_ISA_NAMESPACE amx
#define VGLM_ISA_NAME "amx"
#include "isa.inl"
