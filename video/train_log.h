// The log of a training run as CSV, and back.
#pragma once

#include <string>
#include <vector>

#include "video/train.h"

namespace slidetile::video {

std::string csv_of(const std::vector<TrainRow>& rows);
/// Reads what csv_of writes; `name` stands for the file in messages.
std::vector<TrainRow> rows_from_csv(const std::string& text, const std::string& name);

}  // namespace slidetile::video
