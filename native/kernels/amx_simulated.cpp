#define VGLM_AMX
#define VGLM_AMX_SIMULATED
#define VGLM_ISA_NAMESPACE amx_simulated
#define VGLM_ISA_NAME "amx_simulated"
#include "isa.inl"
