// Draws the log of a training run: loss on a logarithmic axis, and below it how much the reversed word costs.
#pragma once

#include <vector>

#include "picture.h"
#include "video/train.h"

Picture draw_loss_curve(const std::vector<slidetile::video::TrainRow>& rows);
