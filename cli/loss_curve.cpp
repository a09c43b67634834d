#include "loss_curve.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <utility>

using slidetile::video::TrainRow;

namespace {

constexpr Color kPaper{255, 255, 255}, kInk{40, 40, 40}, kGrid{225, 225, 225}, kLoss{30, 90, 180}, kStage{200, 140, 40};
constexpr Color kReversal[] = {{190, 40, 40}, {40, 150, 70}, {130, 60, 170}};
constexpr int kWidth = 960, kHeight = 600, kLeft = 80, kRight = 24, kText = 12;
constexpr Rect kUpper{kLeft, 40, kWidth - kLeft - kRight, 320}, kLower{kLeft, 420, kWidth - kLeft - kRight, 130};

enum class Scale { kLinear, kLog };

// A plot's vertical axis; on a logarithmic one all values but those of line() are logarithms.
struct Axis {
  Rect rect;
  double low, high;
  Scale scale;
  int y_of(double value) const {
    const double share = std::clamp((value - low) / (high - low), 0.0, 1.0);
    return rect.y + rect.height - 1 - static_cast<int>(share * (rect.height - 1));
  }
};

class Chart {
 public:
  Chart(Picture& picture, int64_t last_step) : picture_(picture), last_step_(std::max<int64_t>(last_step, 1)) {}

  int x_of(int64_t step) const {
    return kLeft + static_cast<int>(static_cast<double>(step) / static_cast<double>(last_step_) * (kUpper.width - 1));
  }

  void line(const Axis& axis, double value, const char* format) const {
    char label[32];
    std::snprintf(label, sizeof label, format, value);
    const int y = axis.y_of(axis.scale == Scale::kLog ? std::log10(value) : value);
    picture_.fill({axis.rect.x, y, axis.rect.width, 1}, kGrid);
    picture_.text(kLeft - 8 - text_width(label, kText), y - kText / 2, label, kText, kInk);
  }

  // Points joined by vertical strokes; steps lie closer than pixels.
  void curve(const Axis& axis, const std::vector<std::pair<int64_t, double>>& points, Color color) const {
    for (size_t i = 0; i < points.size(); ++i) {
      const int x = x_of(points[i].first), y = axis.y_of(points[i].second);
      const int from_x = i == 0 ? x : x_of(points[i - 1].first), from_y = i == 0 ? y : axis.y_of(points[i - 1].second);
      for (int at = from_x; at <= x; ++at) {
        const double share = x == from_x ? 1 : static_cast<double>(at - from_x) / (x - from_x);
        const double next = x == from_x ? 1 : std::min(1.0, static_cast<double>(at + 1 - from_x) / (x - from_x));
        const int a = x == from_x ? from_y : from_y + static_cast<int>(share * (y - from_y)),
                  b = from_y + static_cast<int>(next * (y - from_y));
        picture_.fill({at, std::min(a, b), 2, std::abs(a - b) + 2}, color);
      }
    }
  }

 private:
  Picture& picture_;
  int64_t last_step_;
};

}  // namespace

Picture draw_loss_curve(const std::vector<TrainRow>& rows) {
  Picture picture(kWidth, kHeight, kPaper);
  picture.text(kLeft, 16, "loss", kText + 2, kLoss);
  picture.frame(kUpper, 1, kInk);
  picture.frame(kLower, 1, kInk);
  if (rows.empty()) return picture;
  Chart chart(picture, rows.back().step);

  std::vector<std::pair<int64_t, double>> losses;
  double low = 1e9, high = 1e-9;
  for (const TrainRow& row : rows) {
    const double loss = std::max(row.loss, 1e-6);
    losses.emplace_back(row.step, std::log10(loss));
    low = std::min(low, losses.back().second), high = std::max(high, losses.back().second);
  }
  const Axis upper{kUpper, low - 0.05, std::max(high, low + 0.1) + 0.05, Scale::kLog};
  for (int decade = -6; decade <= 1; ++decade) {
    for (const double digit : {1.0, 2.0, 5.0}) {
      const double value = digit * std::pow(10.0, decade), place = std::log10(value);
      if (place > upper.low && place < upper.high) chart.line(upper, value, "%g");
    }
  }
  for (size_t i = 1; i < rows.size(); ++i) {
    if (rows[i].stage != rows[i - 1].stage) picture.fill({chart.x_of(rows[i - 1].step), kUpper.y, 1, kUpper.height}, kStage);
  }
  chart.curve(upper, losses, kLoss);

  double most = 0.01;
  for (const TrainRow& row : rows) {
    if (row.reversal) most = std::max(most, *std::max_element(row.reversal->begin(), row.reversal->end()));
  }
  const Axis lower{kLower, -0.1 * most, most * 1.05, Scale::kLinear};
  for (const double value : {0.0, most / 2, most}) chart.line(lower, value, "%.3g");
  int x = kLeft;
  for (size_t level = 0; level < slidetile::video::kReversalNoise.size(); ++level) {
    std::vector<std::pair<int64_t, double>> points;
    for (const TrainRow& row : rows) {
      if (row.reversal) points.emplace_back(row.step, (*row.reversal)[level]);
    }
    chart.curve(lower, points, kReversal[level]);
    char label[96];
    std::snprintf(label, sizeof label, "%st = %g", level == 0 ? "loss of the opposite direction over the right one - 1, " : "",
                  slidetile::video::kReversalNoise[level]);
    picture.text(x, kLower.y - 22, label, kText, kReversal[level]);
    x += text_width(label, kText) + 24;
  }
  const std::string last = std::to_string(rows.back().step) + " steps";
  picture.text(kWidth - kRight - text_width(last, kText), kLower.y + kLower.height + 12, last, kText, kInk);
  return picture;
}
