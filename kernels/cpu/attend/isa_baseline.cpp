#define HAG_ISA baseline
#include "attend/attend_rows.h"
