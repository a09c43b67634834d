// Draws which tokens of the canvas a query token sees, as slices over t.
#pragma once

#include <string>

#include "picture.h"
#include "slidetile/plan.h"

struct SeenFrom {
  slidetile::Dim3 query;  // a token of the canvas
  int64_t head = 0;
  std::string title;  // what the plan is
};

/// The picture of a plan on a canvas. Throws slidetile::Error unless the query lies on it.
Picture draw_seen(const slidetile::Plan& plan, const SeenFrom& from);

/// 1234567 as "1,234,567".
std::string grouped(int64_t value);
