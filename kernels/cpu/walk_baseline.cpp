#define HAG_ISA baseline
#include "walk.h"
