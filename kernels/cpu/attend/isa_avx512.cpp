#if defined(__x86_64__)
#if !defined(__AVX512F__) || !defined(__AVX512VL__) || !defined(__F16C__)
#error "isa_avx512.cpp needs -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c"
#endif
#define HAG_ISA avx512
#include "attend/attend_rows.h"
#endif
