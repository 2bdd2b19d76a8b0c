#define HAG_ISA baseline
#include "walk.h"
#include "weighted_rows.h"
#include "winner_rows.h"
