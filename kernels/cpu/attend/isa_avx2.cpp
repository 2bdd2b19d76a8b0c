#if defined(__x86_64__)
#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "isa_avx2.cpp needs -mavx2 -mfma -mf16c"
#endif
#define HAG_ISA avx2
#include "attend/attend_rows.h"
#endif
