#define HAG_ISA baseline
#include "run/tile_rows.h"
#include "run/weighted_rows.h"
#include "run/winner_rows.h"
